"""The room for keys and values, where memory is short."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_families import prompts, tiny_gpt2
from worker.engine.cache import GRAIN_TOKENS, KVCache
from worker.engine.engine import Engine
from worker.engine.errors import GenerationFailed
from worker.engine.prefix import PrefixMemory
from worker.engine.request import Request, SamplingParams

LAYER_BYTES = 2 * 4 * 4  # of one token: keys and values of one head of 4 float32


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with so many bytes for a single tensor of the cache; to be changed."""
    limit, plain = [1 << 40], KVCache._zeros

    def zeros(self: KVCache, *shape: int, like: Tensor) -> Tensor:
        made = plain(self, *shape, like=like)
        if made.nbytes > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return made

    monkeypatch.setattr(KVCache, "_zeros", zeros)
    return limit


def write(cache: KVCache, row: int, position: int, value: float) -> None:
    cache.reserve(num_rows=row + 1, num_tokens=position + 1)
    for layer in (0, 1):
        cache.write(layer, torch.tensor([row]), torch.tensor([position]), torch.full((1, 2, 1, 4), value))


def test_room_that_cannot_be_had_leaves_the_room_there_was() -> None:
    cache = KVCache(max_num_rows=1 << 20, max_num_tokens=1 << 40)
    write(cache, 0, 5, 7.0)
    before = cache.capacity
    with pytest.raises(RuntimeError, match="allocate"):  # more than a machine addresses
        write(cache, 0, (1 << 40) - 1, 8.0)
    assert cache.capacity == before
    write(cache, 0, 6, 9.0)
    assert [layer[0, 0, 5:7, 0].tolist() for layer in cache.save(0, 7)] == [[7.0, 9.0]] * 2


def test_first_step_that_is_too_large_does_not_keep_the_next_from_being_smaller() -> None:
    cache = KVCache(max_num_rows=1 << 20, max_num_tokens=1 << 40)
    with pytest.raises(RuntimeError, match="allocate"):
        write(cache, 0, (1 << 40) - 1, 8.0)
    write(cache, 0, 5, 7.0)
    assert cache.capacity == (1, GRAIN_TOKENS)


def test_where_there_is_no_room_for_twice_as_much_there_may_be_for_what_is_needed(memory: list[int]) -> None:
    cache = KVCache(max_num_rows=4, max_num_tokens=1024)
    write(cache, 0, 4 * GRAIN_TOKENS - 1, 7.0)
    memory[0] = 6 * GRAIN_TOKENS * LAYER_BYTES
    write(cache, 0, 4 * GRAIN_TOKENS, 8.0)
    assert cache.capacity == (1, 5 * GRAIN_TOKENS)
    [keys, _] = [layer[0, 0, 4 * GRAIN_TOKENS - 1 :, 0].tolist() for layer in cache.save(0, 4 * GRAIN_TOKENS + 1)]
    assert keys == [7.0, 8.0]


def test_a_sequence_without_room_fails_and_the_others_go_on(memory: list[int]) -> None:
    model = tiny_gpt2()
    params = SamplingParams(do_sample=False, max_new_tokens=5)
    short, long = prompts(9, 100)
    with Engine(model, max_num_seqs=1) as engine:
        expected = engine.submit(Request(prompt_ids=short, params=params)).result(60).ids
    memory[0] = 2 * GRAIN_TOKENS * 4 * 16 * 2 * 4  # two rows of 64 tokens: 4 heads of 16 float32, keys and values
    with Engine(model, max_num_seqs=2) as engine:
        asked = [engine.submit(Request(prompt_ids=ids, params=params)) for ids in (short, long, short)]
        assert asked[0].result(60).ids == asked[2].result(60).ids == expected
        with pytest.raises(GenerationFailed, match="out of memory"):
            asked[1].result(60)


def test_what_there_is_no_room_to_save_is_forgotten(memory: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(max_num_rows=1, max_num_tokens=256)
    known = PrefixMemory(cache, num_rows=1)
    known.attach(0, tuple(range(40)))
    write(cache, 0, 39, 7.0)
    known.release(0, tuple(range(40)))

    def save(row: int, num_tokens: int) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(cache, "save", save)
    assert known.attach(1, tuple(range(100, 140))) == 0
    assert known.row_of(1) == 0
