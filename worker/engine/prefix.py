"""Remembers what the cache's rows hold, so that a sequence computes only what no other has computed before it.

A row keeps its keys and values after its sequence has ended. The next turn of that conversation takes the row over; a
sequence that shares a beginning with another, ended or running, gets a copy of it. What has to make room is saved up to
`max_saved_bytes`, the least recently used first to go. Decides and counts; the tensors are the cache's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from worker.engine.cache import KVCache
from worker.engine.device_errors import is_out_of_memory

MAX_SAVED_BYTES = 1 << 29
MIN_SAVED_TOKENS = 16


@dataclass(slots=True)
class PrefixCounts:
    """How many tokens joined, how many of them the cache held already, and how many saved prefixes had to go."""

    num_tokens: int = 0
    num_reused_tokens: int = 0
    num_evicted: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of tokens that were not computed again."""
        return self.num_reused_tokens / max(self.num_tokens, 1)


@dataclass(slots=True)
class Held:
    """What a row holds: the first `num_tokens` of `ids`, and when it was last used."""

    ids: Sequence[int] = ()
    num_tokens: int = 0
    used_at: int = 0


class PrefixMemory:
    """Gives slots their rows. A row belongs to one running sequence, or keeps what the last one left in it."""

    def __init__(self, cache: KVCache, *, num_rows: int, max_saved_bytes: int = MAX_SAVED_BYTES) -> None:
        self.counts = PrefixCounts()
        self._cache = cache
        self._max_saved_bytes = max_saved_bytes
        self._rows = [Held() for _ in range(num_rows)]
        self._row_of: dict[int, int] = {}
        self._saved: OrderedDict[tuple[int, ...], list[Tensor]] = OrderedDict()
        self._now = 0

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Bind a row to `slot` that holds as much of `ids` as is known; return how much, at least one less than all."""
        try:
            row, num_tokens = self._prepared([*ids[:-1]])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            row, num_tokens = self._without_saved()
        self._row_of[slot] = row
        self._rows[row] = Held(ids, num_tokens, self._tick())
        self.counts.num_tokens += len(ids)
        self.counts.num_reused_tokens += num_tokens
        return num_tokens

    def row_of(self, slot: int) -> int:
        """The row of `slot`, an empty one if none was attached."""
        if slot not in self._row_of:
            self.attach(slot, ())
        return self._row_of[slot]

    def computed(self, slot: int, ids: Sequence[int], num_tokens: int) -> None:
        """Note that the row of `slot` holds the first `num_tokens` of `ids`."""
        held = self._rows[self._row_of[slot]]
        held.ids, held.num_tokens = ids, num_tokens

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """Free the row of `slot`, which keeps `ids`."""
        if slot in self._row_of:
            self._rows[self._row_of.pop(slot)] = Held(tuple(ids), len(ids), self._tick())

    @property
    def saved_bytes(self) -> int:
        """The memory of what was saved from rows."""
        return sum(part.nbytes for parts in self._saved.values() for part in parts)

    def _prepared(self, wanted: list[int]) -> tuple[int, int]:
        """Return a free row and how many tokens of `wanted` it holds now."""
        free = self._free()
        shared = [common_length(wanted, held.ids, held.num_tokens) for held in self._rows]
        source = max(range(len(shared)), key=lambda row: (shared[row], row in free))
        longest = shared[source]
        saved = max(self._saved, key=lambda ids: common_length(wanted, ids, len(ids)), default=())
        if common_length(wanted, saved, len(saved)) > longest:
            return self._from_saved(saved, wanted, free)
        continues = 2 * longest >= self._rows[source].num_tokens
        if source in free and longest and (continues or len(free) == 1):
            return source, longest
        target = self._emptied([row for row in free if row != source or not longest])
        if longest:
            self._cache.copy(source, target, longest)
            self._rows[source].used_at = self._tick()
        return target, longest

    def _without_saved(self) -> tuple[int, int]:
        """Return an empty row, when memory is too short to save or to bring back what rows held."""
        self.counts.num_evicted += len(self._saved)
        self._saved.clear()
        row = min(self._free(), key=lambda row: self._rows[row].used_at)
        self._rows[row] = Held()
        return row, 0

    def _free(self) -> list[int]:
        return sorted(set(range(len(self._rows))) - set(self._row_of.values()))

    def _from_saved(self, saved: tuple[int, ...], wanted: list[int], free: list[int]) -> tuple[int, int]:
        longest = common_length(wanted, saved, len(saved))
        parts = self._saved[saved]
        self._saved.move_to_end(saved)
        if 2 * longest >= len(saved):  # the row continues it
            del self._saved[saved]
        target = self._emptied(free)
        self._cache.load(target, [part[:, :, :longest] for part in parts])
        return target, longest

    def _emptied(self, free: list[int]) -> int:
        """Return the least recently used of the rows `free`, the lowest among empty ones; save what it holds."""
        row = min(free, key=lambda row: (self._rows[row].num_tokens and self._rows[row].used_at, row))
        held = self._rows[row]
        ids = tuple(held.ids[: held.num_tokens])
        self._rows[row] = Held()
        if len(ids) >= MIN_SAVED_TOKENS and self._max_saved_bytes:
            self._save(row, ids)
        return row

    def _save(self, row: int, ids: tuple[int, ...]) -> None:
        if any(other[: len(ids)] == ids for other in self._saved):
            return
        for shorter in [other for other in self._saved if ids[: len(other)] == other]:
            del self._saved[shorter]
        self._saved[ids] = self._cache.save(row, len(ids))
        while self.saved_bytes > self._max_saved_bytes:
            self._saved.popitem(last=False)
            self.counts.num_evicted += 1

    def _tick(self) -> int:
        self._now += 1
        return self._now


def common_length(wanted: list[int], ids: Sequence[int], num_tokens: int) -> int:
    """How many of the first `num_tokens` of `ids` are those that `wanted` begins with."""
    low, high = 0, min(len(wanted), num_tokens)
    while low < high:  # slices compare much faster than single items
        middle = (low + high + 1) // 2
        if wanted[low:middle] == [*ids[low:middle]]:
            low = middle
        else:
            high = middle - 1
    return low
