"""Decides which tokens the next step computes. Owns the waiting queue and the slots; knows no tensors and no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

from worker.engine.errors import EngineBusy
from worker.engine.request import Chunk, Sequence


class Scheduler:
    """First come, first served: at most `max_num_seqs` run, and one step computes about `max_step_tokens` tokens.

    `attach` is asked once for each sequence that gets a slot: how many of its tokens the cache holds already.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_waiting: int = 256,
        max_step_tokens: int = 512,
        attach: Callable[[Sequence], int] = lambda _: 0,
    ) -> None:
        self.max_num_waiting = max_num_waiting
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._attach = attach
        self._free_slots = list(range(max_num_seqs))

    def add(self, sequence: Sequence) -> None:
        """Let `sequence` wait for a slot."""
        if len(self.waiting) >= self.max_num_waiting:
            raise EngineBusy(f"{len(self.waiting)} requests are waiting already; try again later")
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the next step: the next token of every reply under way first, then pieces of prompts.

        A long prompt is computed in pieces so that it does not hold up the replies beside it.
        """
        decoding = [Chunk(s, 1) for s in self.running if _num_missing(s) == 1]
        room = max(self.max_step_tokens - len(decoding), 1)
        prefilling = []
        for sequence in self._incomplete():
            num_tokens = min(_num_missing(sequence), room)
            prefilling.append(Chunk(sequence, num_tokens))
            room -= num_tokens
            if not room:
                break
        return decoding + prefilling

    def finish(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it stands; its slot is free again."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = None

    def everyone(self) -> list[Sequence]:
        """Return all sequences, running and waiting."""
        return [*self.running, *self.waiting]

    def _incomplete(self) -> Iterable[Sequence]:
        """Yield the sequences whose prompts are not computed; those that wait get a slot when their turn comes."""
        yield from [s for s in self.running if _num_missing(s) > 1]
        while self.waiting and self._free_slots:
            sequence = self.waiting.popleft()
            # The lowest free slot, so that the slots in use stay together.
            sequence.slot = heapq.heappop(self._free_slots)
            self.running.append(sequence)
            sequence.num_cached_tokens = self._attach(sequence)
            yield sequence


def _num_missing(sequence: Sequence) -> int:
    return len(sequence.ids) - sequence.num_cached_tokens
