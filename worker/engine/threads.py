"""How many CPU threads compute a step. Beside a program that keeps the cores busy, more threads are far slower.

The threads of one product wait for each other, and each waits for its turn on a core: on two busy cores a step of 16
replies took 3.8 s with two threads and 0.06 s with one. So while there is work a small product is timed now and then.

Threads of our own that have nothing to do are in the way as well: see `release_team`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog
import torch

log = structlog.get_logger(__name__)

CALM_S, BUSY_S = 2.0, 5.0  # how long to keep a decision: trying all threads on busy cores is expensive
# Cores that were free before are tried again sooner, then half as often each time: many messages that come at once keep
# them busy for a moment, just when there is something to compute again.
BURST_S = 0.25
TOLERANCE = 1.15  # more threads are preferred unless they are slower than this
SHAPE = (32, 768, 2048)  # about a layer's product of a small model, for some replies
NUM_PRODUCTS = 3
PAUSE_SOFT = 1  # of OpenMP's omp_pause_resource_t


class Threads(Protocol):
    """Sets the number of threads for the next step."""

    def adjust(self) -> None: ...


class FixedThreads:
    """The number that was asked for, or torch's own."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count

    def adjust(self) -> None:
        """Take the number once; it holds for the thread that calls."""
        if self._count is not None:
            torch.set_num_threads(self._count)
            self._count = None


class AdaptiveThreads:
    """All threads up to `maximum` while the cores are free, fewer while others use them."""

    def __init__(
        self,
        maximum: int,
        *,
        timed: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = maximum
        self._counts = [maximum]
        while self._counts[-1] > 1:
            self._counts.append(self._counts[-1] // 2)
        self._timed = timed or timed_products
        self._clock = clock
        self._keep_until = float("-inf")
        self._busy_s = BURST_S

    def adjust(self) -> None:
        """Decide anew where the last decision is old."""
        if self._clock() < self._keep_until:
            return
        best = self._fastest()
        if best != self.count:  # a lull of a millisecond is no free core, a reply that is passed on is no busy one
            best = sorted((best, self._fastest(), self.count))[1]
        if best != self.count:
            log.info("threads changed", num_threads=best, cores_are_busy=best < self._counts[0])
        self.count = best
        torch.set_num_threads(best)
        if best == self._counts[0]:
            keep_s, self._busy_s = CALM_S, BURST_S
        else:
            keep_s, self._busy_s = self._busy_s, min(2 * self._busy_s, BUSY_S)
        self._keep_until = self._clock() + keep_s

    def _fastest(self) -> int:
        durations = [self._timed(count) for count in self._counts]
        limit = TOLERANCE * min(durations)
        return next(count for count, took in zip(self._counts, durations, strict=True) if took <= limit)


def threads_for(device: torch.device, asked: int | None) -> Threads:
    """Adapt on a CPU with several cores, unless a number was asked for."""
    if asked is not None or device.type != "cpu" or torch.get_num_threads() == 1:
        return FixedThreads(asked)
    return AdaptiveThreads(torch.get_num_threads())


def timed_products(count: int) -> float:
    """Return the time of a few products with `count` threads, in seconds; the first one wakes the threads."""
    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    torch.set_num_threads(count)
    torch.mm(left, right)
    started = time.perf_counter()
    for _ in range(NUM_PRODUCTS):
        torch.mm(left, right)
    return time.perf_counter() - started


def release_team() -> None:
    """End the threads that compute with the calling one; its next product gets new ones. For whoever is done for now.

    Every thread that ever computed keeps a team. Where all teams together have more threads than there are cores, GNU's
    OpenMP lets them sleep between any two products instead of waiting a moment for the next: then 16 conversations on
    two cores got 295 tokens per second instead of 454, because the model had been loaded in another thread.
    """
    if runtime := _openmp():
        runtime.omp_pause_resource_all(PAUSE_SOFT)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that came with torch, where it is GNU's."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))  # the one that is loaded already
    return None
