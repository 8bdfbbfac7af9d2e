"""The processes of one run, as `torchrun` starts them: each computes its share of a step's gradient, all take the step.

Gradients are summed, not averaged: every process divides by the labels of the whole step, so that a step is the same
however many compute it. Knows `torch.distributed`, not training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is; alone, where nothing else is said."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls, device: torch.device) -> Ranks:
        """Join the processes that `torchrun` started, over NCCL on GPUs and Gloo on CPUs."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls(device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(device, dist.get_rank(), count)

    @property
    def is_first(self) -> bool:
        """Whether this process writes, validates and talks."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """Return what this process computes of the batches of a step."""
        return batches[self.rank :: self.count]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every process's gradients, in one transfer."""
        if self.count == 1:
            return
        held = list(parameters)
        for parameter in held:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in held if parameter.grad is not None]
        together = torch.cat([grad.reshape(-1).float() for grad in grads])
        dist.all_reduce(together)
        for grad, summed in zip(grads, torch.split(together, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))

    def sum(self, value: float) -> float:
        """Add up one number over all processes."""
        return value if self.count == 1 else float(self._reduced(value, dist.ReduceOp.SUM))

    def any(self, flag: bool) -> bool:
        """Return whether any process says yes; all of them get the same answer."""
        return flag if self.count == 1 else bool(self._reduced(float(flag), dist.ReduceOp.MAX))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> Tensor:
        held = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(held, how)
        return held
