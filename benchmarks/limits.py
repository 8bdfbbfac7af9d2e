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
    linears = [(pack(weight, dtype=dtype), weight.shape[1]) for weight in matrices(model)]
    rows = {width: torch.randn(batch_size, width) for _, width in linears}

    def step() -> None:
        for linear, width in linears:
            linear(rows[width])

    return batch_size / median_s(step)


def weight_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The size of the matrices that a step reads."""
    return sum(weight.numel() for weight in matrices(model)) * dtype.itemsize


def read_bytes_per_s() -> float:
    """How fast memory is read."""
    memory = torch.ones(READ_BYTES // 4)
    return READ_BYTES / median_s(lambda: memory.sum())


def matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """Every matrix that a row is multiplied with, as (out, in)."""
    return [
        module.weight.T if isinstance(module, Conv1D) else module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]


@torch.inference_mode()
def median_s(compute: Callable[[], object]) -> float:
    """The median time of `compute`, in seconds, after one run to warm up."""
    compute()
    times = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
