"""Sees from outside what engines do: every request that reaches one and how it ends, slots, and the process's memory.

Judges nothing; of memory it tells by how much it grew. Linux with glibc.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import statistics
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

from transformers import PreTrainedModel

from benchmarks.swap import MIB, resident
from worker import respond
from worker.engine.engine import Engine
from worker.engine.errors import EngineError
from worker.engine.prefix import PrefixCounts
from worker.engine.request import Completion, Request

MAX_GROWTH = 0.02  # of the second quarter's median
MIN_SAMPLES = 8  # fewer say nothing about growth


class Witness:
    """What was asked of all engines made within `watching`, and what became of it."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.num_asked = 0
        self.endings: Counter[str] = Counter()
        self.counts: list[PrefixCounts] = []  # of each engine that ever was
        self._engines: WeakSet[Engine] = WeakSet()
        self._open: dict[Future[Completion], None] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def watching(self, **limits: Any) -> Iterator[None]:
        """Let whatever starts a responder start an engine that is seen, with `limits` besides its options."""
        witness = self

        class Watched(Engine):
            def __init__(self, model: PreTrainedModel, **options: Any) -> None:
                super().__init__(model, **options, **limits)
                with witness._lock:
                    witness.counts.append(self.prefix_counts)
                    witness._engines.add(self)

            def submit_together(self, requests: Iterable[Request]) -> list[Future[Completion]]:
                asked = list(requests)
                with witness._lock:
                    witness.num_asked += len(asked)
                try:
                    futures = super().submit_together(asked)
                except EngineError as error:
                    with witness._lock:
                        witness.endings[type(error).__name__] += len(asked)
                    raise
                with witness._lock:
                    witness._open |= dict.fromkeys(futures)
                for future in futures:
                    future.add_done_callback(witness._note)
                return futures

        with patch.object(respond, "Engine", Watched):
            yield

    @property
    def num_open(self) -> int:
        """How many requests have not ended."""
        return len(self._open)

    @property
    def num_engines(self) -> int:
        """How many engines are in memory."""
        return len(self._engines_now())

    @property
    def num_slots_in_use(self) -> int:
        """How many slots are not free, in all engines."""
        return sum(engine._max_num_seqs - engine._scheduler.num_free_slots for engine in self._engines_now())

    @property
    def is_idle(self) -> bool:
        """Whether every request has ended and nobody holds a slot or a place in a queue."""
        return not (self._open or self.num_slots_in_use or any(engine.num_waiting for engine in self._engines_now()))

    def cancel_one(self) -> None:
        """Cancel a request that has not ended, if there is one."""
        with self._lock:
            running = list(self._open)
        if running:
            self._draw.choice(running).cancel()

    def _engines_now(self) -> list[Engine]:
        with self._lock:  # a model that loads adds its own meanwhile
            return list(self._engines)

    def _note(self, future: Future[Completion]) -> None:
        with self._lock:
            del self._open[future]
            self.endings[ending(future)] += 1


def ending(future: Future[Completion]) -> str:
    """Name the way in which a request ended: a reply's reason, the class of an error, or `cancelled`."""
    if future.cancelled():
        return "cancelled"
    error = future.exception()
    return type(error).__name__ if error else str(future.result().finish_reason)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process holds while nobody waits. `allocated_mb` is what malloc has given out, without free pieces that
    it keeps; `num_blocks` are Python's own."""

    at_s: float
    resident_mb: float
    allocated_mb: float
    num_blocks: int
    num_threads: int
    num_files: int

    @classmethod
    def taken(cls, at_s: float) -> Sample:
        """Look now."""
        threads, files = (sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("task", "fd"))
        return cls(at_s, resident() / MIB, allocated() / MIB, sys.getallocatedblocks(), threads, files)


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33: the bytes of all arenas in use, and those mapped one by one, among others."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "k")
    ]


def allocated() -> int:
    """Return the bytes that malloc has given out and not got back."""
    ask = ctypes.CDLL("libc.so.6").mallinfo2
    ask.restype = _Allocated
    found = ask()
    return int(found.uordblks + found.hblkhd)


def growth(samples: Sequence[Sample], name: str) -> dict[str, float | str]:
    """Tell how a figure went on after the first quarter: its slope (in its own unit an hour, MB for memory), its
    spread, and whether the last quarter's median is more than 2 % above the second's. That rule is no proof of
    flatness: in an hour's run it lets pass 2 % in half an hour, which the slope shows. Wants at least one sample."""
    settled = samples[len(samples) // 4 :]
    values = [float(getattr(sample, name)) for sample in settled]
    if len(samples) < MIN_SAMPLES:
        return {"median": round(statistics.median(values), 1), "last_quarter_is": "of too few samples"}
    slope = statistics.linear_regression([sample.at_s / 3600 for sample in settled], values).slope
    third = len(values) // 3
    second, last = statistics.median(values[:third]), statistics.median(values[-third:])
    return {
        "second_quarter": round(second, 1),
        "last_quarter": round(last, 1),
        "slope_per_hour": round(slope, 1),
        "lowest": round(min(values), 1),
        "highest": round(max(values), 1),
        "last_quarter_is": f"{'at most' if last <= second * (1 + MAX_GROWTH) else 'more than'} {MAX_GROWTH:.0%} higher",
    }
