"""The checkpoint folder format: what a trainer run leaves and a worker loads. Knows file names, not tensors.

A folder holds `checkpoint.json` (this format's own description), `layout.json`, `tokenizer.json`, the weights
(`config.json` + `model.safetensors`, or `adapter_config.json` + `adapter_model.safetensors`), and for people
`README.md`, `metrics.json` and `train.toml`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from personas.errors import CheckpointError
from personas.persona import GenerationSettings

DESCRIPTION_FILE = "checkpoint.json"
WEIGHT_FILES = {
    "full": ("config.json", "model.safetensors"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
}


class Description(BaseModel):
    """The content of `checkpoint.json`. `base` names what an adapter was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    kind: Literal["full", "adapter"]
    base: str | None = None
    generation: GenerationSettings = GenerationSettings()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that is complete on disk; `digest` is a short hash of what determines its replies."""

    folder: Path
    kind: Literal["full", "adapter"]
    base: str | None
    generation: GenerationSettings
    digest: str


def is_checkpoint(folder: Path) -> bool:
    """Tell our own checkpoints from plain Hugging Face folders."""
    return (folder / DESCRIPTION_FILE).is_file()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Check that `folder` is a complete checkpoint and describe it; raise `CheckpointError` otherwise."""
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: {DESCRIPTION_FILE} is missing. "
            "Point to a folder made by `personabot train`."
        )
    try:
        description = Description.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(f"{path}: {field}: {first['msg']}. Train it again, or restore the file.") from error
    names = (*WEIGHT_FILES[description.kind], "layout.json", "tokenizer.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)} missing. Copy the whole folder again, or train it again."
        )
    if description.kind == "adapter" and not description.base:
        raise CheckpointError(f"{path}: base: an adapter must name the model it was trained on.")
    _check_length(folder / names[1])
    return Checkpoint(folder, description.kind, description.base, description.generation, _digest(folder, names))


def write_description(folder: Path, description: Description) -> None:
    """Write `checkpoint.json`; done last, so that an interrupted write never looks complete."""
    data = description.model_dump(mode="json", exclude_none=True)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _check_length(weights: Path) -> None:
    """Refuse a file that ends before the tensors its header lists (safetensors: length, JSON header, data)."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 100_000_000)))
            expected = (
                8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            expected = -1
    if (size := weights.stat().st_size) != expected:
        said = "its header can't be read" if expected < 0 else f"{size} bytes long, expected {expected}"
        raise CheckpointError(f"{weights} is damaged or cut off: {said}. Copy the whole folder again.")


def file_hashes(folder: Path, *, without: str) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder` by relative path, the file `without` at its top apart."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / without)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(folder: Path, names: tuple[str, ...]) -> str:
    total = hashlib.sha256()
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]
