"""What the hardware allows: the time of a model's products alone, and of reading its weights once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.engine.linear import pack

NUM_REPEATS = 5
READ_BYTES = 1 << 29


def products_tokens_per_s(model: PreTrainedModel, dtype: torch.dtype, batch_size: int) -> float:
    """Tokens per second if a step of `batch_size` sequences were its packed products and nothing else."""
    is_fine = model.config.model_type == "llama"  # as in worker/engine/models/llama.py
    linears = [(pack(weight, dtype=dtype, is_fine=is_fine), weight.shape[1]) for weight in matrices(model)]
    rows = {width: torch.randn(batch_size, width, device=model.device) for _, width in linears}

    def step() -> None:
        for linear, width in linears:
            linear(rows[width])

    return batch_size / median_s(step, model.device)


def weight_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The size of the matrices that a step reads."""
    return sum(weight.numel() for weight in matrices(model)) * dtype.itemsize


def read_bytes_per_s(device: torch.device) -> float:
    """How fast the device's memory is read."""
    memory = torch.ones(READ_BYTES // 4, device=device)
    return READ_BYTES / median_s(memory.sum, device)


def matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """Every matrix that a row is multiplied with, as (out, in)."""
    return [
        module.weight.T if isinstance(module, Conv1D) else module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]


@torch.inference_mode()
def median_s(compute: Callable[[], object], device: torch.device) -> float:
    """The median time until `device` has done what `compute` asks it to, in seconds, after one run to warm up."""

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    compute()
    times = []
    for _ in range(NUM_REPEATS):
        wait()
        started = time.perf_counter()
        compute()
        wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
