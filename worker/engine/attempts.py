"""Computes a step in spite of errors: less at a time where memory runs out, one by one where something crashes.

Decides what is tried again and what is given up; knows neither models nor futures.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import structlog
import torch

from worker.engine.device_errors import is_beyond_repair, is_out_of_memory
from worker.engine.errors import GenerationFailed, first_line
from worker.engine.graphs import RECORDING
from worker.engine.request import Chunk

log = structlog.get_logger(__name__)

MAX_CRASHES = 2
NUM_CALM_STEPS = 1000  # after so many steps without trouble twice as much is tried again
T = TypeVar("T")


class Attempts(Generic[T]):
    """Runs `compute`, which returns a result for each of its chunks, in order.

    `num_out_of_memory` counts how often memory ran out; `max_tokens` is what a step computes at once since then.
    """

    def __init__(self, compute: Callable[[list[Chunk]], list[T]]) -> None:
        self._compute = compute
        self.num_out_of_memory = 0
        self.max_tokens: int | None = None
        self._num_calm = 0

    def run(self, chunks: list[Chunk]) -> list[tuple[Chunk, T | GenerationFailed]]:
        """Compute all chunks. What was computed may end earlier than asked for where memory is short."""
        results = [result for piece in self._pieces(chunks) for result in self._attempt(piece)]
        self._num_calm += 1
        if self.max_tokens is not None and self._num_calm >= NUM_CALM_STEPS:
            self.max_tokens, self._num_calm = self.max_tokens * 2, 0
        return results

    def _pieces(self, chunks: list[Chunk]) -> Iterator[list[Chunk]]:
        """Yield `chunks` in pieces of at most `max_tokens` tokens."""
        if self.max_tokens is None:
            yield chunks
            return
        piece: list[Chunk] = []
        room = self.max_tokens
        for chunk in chunks:
            part = Chunk(chunk.sequence, min(chunk.num_tokens, self.max_tokens))
            if part.num_tokens > room:
                yield piece
                piece, room = [], self.max_tokens
            piece.append(part)
            room -= part.num_tokens
        yield piece

    def _attempt(self, chunks: list[Chunk]) -> Iterable[tuple[Chunk, T | GenerationFailed]]:
        try:
            return list(zip(chunks, self._compute(chunks), strict=True))
        except Exception as error:
            if is_beyond_repair(error):
                raise
            why, is_short_of_memory = first_line(error), is_out_of_memory(error)
            if not is_short_of_memory:
                log.exception("a step failed", num_requests=len(chunks))
        # Only here is the memory free that the error's traceback held.
        return self._with_less(chunks, why) if is_short_of_memory else self._one_by_one(chunks, why)

    def _with_less(self, chunks: list[Chunk], why: str) -> Iterable[tuple[Chunk, T | GenerationFailed]]:
        """Halve what is computed at once, from now on too."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        self.num_out_of_memory += 1
        self._num_calm = 0
        log.warning("out of memory, computing half at a time", num_requests=len(chunks), num_tokens=num_tokens)
        empty_caches()
        if num_tokens == 1:
            advice = "Let fewer replies be generated side by side (max_num_seqs), or take a smaller model"
            return [(chunks[0], GenerationFailed(f"out of memory: {why}. {advice}."))]
        self.max_tokens = num_tokens // 2
        return [result for piece in self._pieces(chunks) for result in self._attempt(piece)]

    def _one_by_one(self, chunks: list[Chunk], why: str) -> Iterable[tuple[Chunk, T | GenerationFailed]]:
        """Find the request that crashes the model; alone it may try once more."""
        if len(chunks) > 1:
            return [result for chunk in chunks for result in self._attempt([chunk])]
        [chunk] = chunks
        chunk.sequence.num_crashes += 1
        if chunk.sequence.num_crashes < MAX_CRASHES:
            return self._attempt(chunks)
        log.error("a request was set aside", num_tokens=len(chunk.sequence.ids))
        return [(chunk, GenerationFailed(f"the model failed {MAX_CRASHES} times on this request: {why}"))]


def empty_caches() -> None:
    """Give back what Python and torch hold without using it."""
    gc.collect()
    if torch.cuda.is_available():
        with RECORDING:
            torch.cuda.empty_cache()
