"""Decides which tokens the next step computes. Owns the waiting queue and the slots; knows no tensors and no clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from worker.engine.fairness import FairQueue
from worker.engine.request import Chunk, Sequence


class Scheduler:
    """At most `max_num_seqs` run, and one step computes about `max_step_tokens` tokens; who waits is taken in turns.

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
        self.max_step_tokens = max_step_tokens
        self.waiting = FairQueue(max_num_waiting)
        self.running: list[Sequence] = []
        self._attach = attach
        self._free_slots = list(range(max_num_seqs))

    @property
    def num_free_slots(self) -> int:
        """The number of slots that nobody runs in."""
        return len(self._free_slots)

    def add(self, *sequences: Sequence) -> None:
        """Let `sequences` wait for their slots, all of them or none: `EngineBusy`."""
        self.waiting.add(*sequences)

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

    def fork(self, root: Sequence) -> Sequence:
        """Return a sequence for another beam of `root`, in one of the slots held in reserve for it."""
        beam = Sequence(root.request, root=root)
        beam.slot = root.reserved_slots.pop()
        self.running.append(beam)
        return beam

    def finish(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it stands; its slots are free again."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        for slot in (sequence.slot, *sequence.reserved_slots):
            heapq.heappush(self._free_slots, slot)
        sequence.slot, sequence.reserved_slots = None, []

    def everyone(self) -> list[Sequence]:
        """Return all sequences, running and waiting."""
        return [*self.running, *self.waiting]

    def _incomplete(self) -> Iterable[Sequence]:
        """Yield the sequences whose prompts are not computed; those that wait get a slot when their turn comes."""
        yield from [s for s in self.running if _num_missing(s) > 1]
        while sequence := self.waiting.next():
            # One that needs several slots waits for them, and holds up the others meanwhile: else it never ran.
            if len(self._free_slots) < sequence.params.num_beams:
                return
            self.waiting.take(sequence)
            # The lowest free slots, so that the slots in use stay together.
            slots = [heapq.heappop(self._free_slots) for _ in range(sequence.params.num_beams)]
            sequence.slot, *sequence.reserved_slots = slots
            self.running.append(sequence)
            sequence.num_cached_tokens = self._attach(sequence)
            yield sequence


def _num_missing(sequence: Sequence) -> int:
    return len(sequence.ids) - sequence.num_cached_tokens
