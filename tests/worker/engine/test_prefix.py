"""What the prefix memory finds for a sequence, in which row, and what it forgets first."""

from __future__ import annotations

import pytest
import torch

from worker.engine.cache import KVCache
from worker.engine.prefix import PrefixMemory, common_length

PERSONA = tuple(range(100, 130))
TOKEN_BYTES = 2 * 1 * 4 * 4  # keys and values of one head of 4 float32


class World:
    """A memory over a cache of one layer, in which a token's key is its id."""

    def __init__(self, num_rows: int, max_saved_bytes: int = 1 << 20) -> None:
        self.cache = KVCache(max_num_rows=num_rows, max_num_tokens=256)
        self.memory = PrefixMemory(self.cache, num_rows=num_rows, max_saved_bytes=max_saved_bytes)

    def begin(self, slot: int, ids: tuple[int, ...]) -> int:
        """Attach, check what is found, and compute the rest."""
        found = self.memory.attach(slot, ids)
        row = self.memory.row_of(slot)
        if found:
            assert self.keys(row, found) == list(ids[:found])
        self.cache.reserve(num_rows=row + 1, num_tokens=len(ids))
        missing = range(found, len(ids))
        kv = torch.tensor([float(ids[i]) for i in missing])[:, None, None, None].expand(-1, 2, 1, 4)
        self.cache.write(0, torch.full((len(missing),), row), torch.tensor([*missing]), kv)
        self.memory.computed(slot, ids, len(ids))
        return found

    def say(self, slot: int, ids: tuple[int, ...]) -> int:
        """Begin and end at once."""
        found = self.begin(slot, ids)
        self.memory.release(slot, ids)
        return found

    def keys(self, row: int, num_tokens: int) -> list[int]:
        [layer] = self.cache.save(row, num_tokens)
        return [int(key) for key in layer[0, 0, :, 0]]


def turn(conversation: int, length: int) -> tuple[int, ...]:
    return PERSONA + tuple(1000 * conversation + i for i in range(length))


def test_the_next_turn_takes_over_the_row_of_the_last_one() -> None:
    world = World(2)
    assert world.say(0, turn(1, 40)) == 0
    assert world.say(1, turn(1, 60)) == 70
    assert world.memory.saved_bytes == 0


def test_a_prompt_that_is_known_whole_is_computed_from_its_last_token() -> None:
    world = World(2)
    world.say(0, turn(1, 40))
    assert world.memory.attach(0, turn(1, 40)) == 69


def test_another_conversation_copies_the_persona_and_leaves_the_row_alone() -> None:
    world = World(2)
    world.say(0, turn(1, 40))
    assert world.say(0, turn(2, 40)) == len(PERSONA)
    assert world.say(0, turn(1, 50)) == 70
    assert world.say(0, turn(2, 50)) == 70


def test_a_prefix_is_copied_from_a_running_sequence() -> None:
    world = World(3)
    world.begin(0, turn(1, 40))
    assert world.begin(1, turn(1, 40)) == 69
    assert world.begin(2, turn(1, 50)) == 70
    assert len({world.memory.row_of(slot) for slot in range(3)}) == 3


def test_only_what_is_computed_of_a_running_sequence_is_found() -> None:
    world = World(2)
    world.memory.attach(0, turn(1, 40))
    assert world.memory.attach(1, turn(1, 40)) == 0


def test_what_makes_room_is_saved_and_comes_back() -> None:
    world = World(1)
    world.say(0, turn(1, 40))
    world.say(0, (7,) * 20)
    assert world.memory.saved_bytes == 70 * TOKEN_BYTES
    assert world.say(0, turn(1, 50)) == 70
    assert world.memory.saved_bytes == 20 * TOKEN_BYTES


def test_the_least_recently_used_is_forgotten_when_the_budget_is_spent() -> None:
    world = World(1, max_saved_bytes=100 * TOKEN_BYTES)
    for number in (1, 2, 3, 4):
        world.say(0, (number,) * 40)
    assert world.memory.saved_bytes <= 100 * TOKEN_BYTES
    assert world.memory.counts.num_evicted == 1
    assert world.say(0, (1,) * 50) == 0
    assert world.say(0, (3,) * 50) == 40


def test_without_a_budget_nothing_is_saved() -> None:
    world = World(1, max_saved_bytes=0)
    world.say(0, turn(1, 40))
    world.say(0, (7,) * 20)
    assert world.say(0, turn(1, 50)) == 0


def test_a_longer_copy_replaces_a_shorter_one_of_the_same_conversation() -> None:
    world = World(1)
    for length in (40, 60):
        world.say(0, turn(1, length))
        world.say(0, (7,) * 20)
    assert world.memory.saved_bytes == 90 * TOKEN_BYTES


def test_it_counts_what_was_reused() -> None:
    world = World(2)
    world.say(0, turn(1, 40))
    world.say(0, turn(1, 70))
    counts = world.memory.counts
    assert (counts.num_tokens, counts.num_reused_tokens, counts.hit_rate) == (170, 70, 70 / 170)


@pytest.mark.parametrize(
    ("wanted", "ids", "num_tokens", "expected"),
    [
        ([1, 2, 3], (1, 2, 3, 4), 4, 3),
        ([1, 2, 3], (1, 2, 3, 4), 2, 2),
        ([1, 2, 3], (1, 9, 3), 3, 1),
        ([1], (2,), 1, 0),
        ([], (1,), 1, 0),
        ([1], (), 0, 0),
    ],
)
def test_the_common_length_stops_at_the_first_difference(
    wanted: list[int], ids: tuple[int, ...], num_tokens: int, expected: int
) -> None:
    assert common_length(wanted, ids, num_tokens) == expected
