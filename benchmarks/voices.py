"""Voices as adapters: one merged copy each, or one base with the adapters beside it. The linear layers' products only.

python -m benchmarks.voices [ADAPTER FOLDER]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from personas.checkpoint import read_checkpoint
from personas.registry import SHIPPED_FOLDER
from worker.adapter import PREFIX
from worker.engine.linear import PackedLinear
from worker.loading import base_of, load_model

NUM_RUNS = 12
Layer = tuple[PackedLinear, Tensor, Tensor, int]  # packed base weight, A (r, in), B (out, r), width in


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED_FOLDER / "smollm2-persona")
    layers = read_layers(parser.parse_args().folder)
    print(f"{len(layers)} layers, {torch.get_num_threads()} threads, milliseconds, median of {NUM_RUNS}")
    with torch.inference_mode():
        for num_rows, num_voices in ((1, 1), (4, 1), (4, 4), (16, 4)):
            rows = [torch.randn(num_rows, width) for *_, width in layers]
            merged = timed(partial(in_turn, layers, rows, num_voices))
            beside = timed(partial(together, layers, rows, num_voices))
            print(f"{num_rows} rows, {num_voices} voices: merged copies {merged:.1f}, one base {beside:.1f}")


def read_layers(folder: Path) -> list[Layer]:
    """Return the base's linear layers that the adapter in `folder` changes."""
    tensors = load_file(folder / "adapter_model.safetensors")
    scaling = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    factor = scaling["lora_alpha"] / scaling["r"]
    base = load_model(str(base_of(read_checkpoint(folder))), device="cpu", dtype="float32").model
    layers = []
    for name, module in base.named_modules():
        if (down := tensors.get(f"{PREFIX}{name}.lora_A.weight")) is not None:
            up = tensors[f"{PREFIX}{name}.lora_B.weight"].float() * factor
            weight = module.get_parameter("weight")
            layers.append((PackedLinear(weight, None), down.float(), up, weight.shape[1]))
    return layers


def in_turn(layers: list[Layer], rows: list[Tensor], num_voices: int) -> None:
    """One step for each voice, over its share of the rows, with weights of its own."""
    for voice in range(num_voices):
        for (product, *_), row in zip(layers, rows, strict=True):
            product(row[voice::num_voices].contiguous())


def together(layers: list[Layer], rows: list[Tensor], num_voices: int) -> None:
    """One step over all rows, and each voice's two small products for its share of them."""
    for (product, down, up, _), row in zip(layers, rows, strict=True):
        out = product(row)
        for voice in range(num_voices):
            out[voice::num_voices] += (row[voice::num_voices] @ down.T) @ up.T


def timed(step: Callable[[], None]) -> float:
    """Return the median time of a step in milliseconds; the first run is not counted."""
    step()
    took = []
    for _ in range(NUM_RUNS):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1000


if __name__ == "__main__":
    main()
