"""The smallest complete checkpoint folder, for tests that load no model."""

from __future__ import annotations

from pathlib import Path

from personas.checkpoint import Description, write_description


def bare_checkpoint(folder: Path, content: str = "one") -> Path:
    """Write a folder whose one tensor holds `content`."""
    folder.mkdir(parents=True)
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(content), len(content))
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content.encode())
    for name in ("config.json", "layout.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    write_description(folder, Description(kind="full"))
    return folder
