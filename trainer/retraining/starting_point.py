"""What a retraining starts from, by any name people know it: registry reference, shipped model, folder, hub id.

An adapter is merged into its base for training; what is trained on top becomes one adapter on the original base again,
so that it stays small and every voice can share that base.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from personas.catalogue import load_catalogue
from personas.checkpoint import Checkpoint, Description, is_checkpoint, read_checkpoint, write_description
from personas.errors import PersonabotError
from personas.layout import TEMPLATE_FILE, Layout, load_layout
from personas.registry import Registry
from personas.settings import Settings
from personas.voices import speaks_with
from trainer.retraining.recipes import Base
from trainer.retraining.retention import BASES
from worker.bases import HUB_IDS
from worker.engine.runner import model_window
from worker.loading import Found, find_model, load_model, resolve_model
from worker.plain_folder import plain_layout
from worker.queue.job import Order

LAYOUT_FILES: Final = ("layout.json", "tokenizer.json", TEMPLATE_FILE)


def find_base(settings: Settings, reference: str = "") -> tuple[Base, Layout]:
    """Return the base for `reference` ("": what is served now) and the layout to count its tokens by."""
    registry = Registry.of(settings)
    found = find_model(reference or registry.chosen() or settings.model, registry)
    if isinstance(found.place, Path) and is_checkpoint(found.place):
        return _ours(read_checkpoint(found.place), found.reference or str(found.place), settings)
    return _plain(reference or settings.model)


def voice_of(order: Order, settings: Settings) -> str:
    """Return what the order's persona speaks with now, which its new voice goes on from; "" for the default."""
    persona = load_catalogue(settings.personas_dir).get(order.persona) if order.persona else None
    return speaks_with(settings, persona) if persona else ""


def present_model(order: Order, settings: Settings) -> Found | None:
    """Return what the order's model would take the place of, as it is now; None where nothing speaks there yet.

    For a persona that is what it speaks with, or else what everybody is answered by, whatever the training began from.
    """
    registry = Registry.of(settings)
    default = registry.chosen() or settings.model
    for reference in dict.fromkeys((voice_of(order, settings) or default, default)):
        with contextlib.suppress(PersonabotError):  # a voice that can't be loaded leaves its persona with the default
            return find_model(reference, registry)
    return None


def folder_of(registry: Registry, reference: str) -> Path | None:
    """Return the folder that a reference, a shipped model's name or a path stands for; None for a hub id."""
    place = find_model(reference, registry).place
    return place if isinstance(place, Path) else None


def _ours(checkpoint: Checkpoint, reference: str, settings: Settings) -> tuple[Base, Layout]:
    layout = load_layout(checkpoint.folder)
    folder = checkpoint.folder
    if checkpoint.kind == "adapter":
        folder = merged_base(checkpoint, settings.data_dir / BASES / checkpoint.digest)
    base = Base(
        reference,
        str(folder),
        layout.name,
        layout.max_tokens,
        (folder / "model.safetensors").stat().st_size,
        checkpoint.generation,
        count_weights(folder / "model.safetensors"),
    )
    return base, layout


def _plain(name: str) -> tuple[Base, Layout]:
    """Describe a model of `transformers`: all weights learn speaker tokens, unless it has a chat template.

    An adapter would not learn tokens that the base lacks, so a large one keeps the layout that it is served with.
    """
    loaded = load_model(name, device="cpu")
    layout = loaded.layout
    num_weights = sum(p.numel() for p in loaded.model.parameters())
    found = resolve_model(name)
    path = name if name in HUB_IDS or not isinstance(found, Path) else str(found)
    window = min(model_window(loaded.model), 1024)
    if isinstance(found, Path) and layout.name != "chat":
        layout = plain_layout(found, max_tokens=window)
    base = Base(name, path, layout.name, window, num_weights * 2, num_weights=num_weights)
    return base if base.is_large or layout.name == "chat" else replace(base, layout="persona"), layout


def count_weights(path: Path) -> int:
    """Return how many numbers a file of safetensors holds, by its header alone."""
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping


def merged_base(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write the adapter `checkpoint` and its base as one plain model, whole or not at all; one that is there is used.

    When it was used last is the time of its folder: `retention` deletes it some time after.
    """
    if (folder / "config.json").is_file():
        os.utime(folder)
        return folder
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    loaded = load_model(str(checkpoint.folder), device="cpu", dtype="float32")
    loaded.model.save_pretrained(scratch)
    for name in LAYOUT_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copy(checkpoint.folder / name, scratch / name)
    scratch.rename(folder)
    return folder


def on_original_base(trained: Path, start: Path) -> None:
    """Turn an adapter trained on the merged adapter `start` into one on `start`'s own base, in place.

    Both add B A to a layer, so side by side in one pair of matrices they add the sum: the ranks add up.
    """
    first, second = _factors(start), _factors(trained)
    config = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {}
    for name in {**first, **second}:
        down, up = zip(*(factors[name] for factors in (first, second) if name in factors), strict=True)
        tensors[f"{name}.lora_A.weight"] = torch.cat(down).to(torch.float16).contiguous()
        tensors[f"{name}.lora_B.weight"] = torch.cat(up, dim=1).to(torch.float16).contiguous()
    rank = max(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.weight"))
    base = read_checkpoint(start).base
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "base_model_name_or_path": base}
    old = read_checkpoint(trained)
    save_file(tensors, trained / "adapter_model.safetensors")
    (trained / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_description(trained, Description(kind="adapter", base=base, generation=old.generation))


def _factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (A, B) of every layer in float32, the scaling in B."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    return {
        name: (tensors[f"{name}.lora_A.weight"].float(), tensors[f"{name}.lora_B.weight"].float() * scaling)
        for name in sorted(names)
    }
