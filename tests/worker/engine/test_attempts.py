"""What becomes of a step when memory runs out or a request crashes the model."""

from __future__ import annotations

import pytest
import torch

from worker.engine.attempts import NUM_CALM_STEPS, Attempts
from worker.engine.device_errors import is_out_of_memory
from worker.engine.errors import GenerationFailed
from worker.engine.request import Chunk, Request, Sequence


def chunk(num_tokens: int, *, poison: bool = False) -> Chunk:
    prompt = (66,) if poison else (1,)
    return Chunk(Sequence(Request(prompt_ids=prompt * num_tokens)), num_tokens)


class Model:
    """Computes as many tokens at once as its memory holds; chokes on 66, as often as it is told to."""

    def __init__(self, memory: int = 1000, num_crashes: int = 1000) -> None:
        self.memory = memory
        self.num_crashes = num_crashes
        self.batches: list[list[int]] = []

    def compute(self, chunks: list[Chunk]) -> list[int]:
        self.batches.append([c.num_tokens for c in chunks])
        if sum(c.num_tokens for c in chunks) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        if self.num_crashes and any(66 in c.ids for c in chunks):
            self.num_crashes -= 1
            raise ValueError("66 is too much")
        return [c.num_tokens for c in chunks]


def test_where_memory_runs_out_the_batch_is_halved_and_stays_halved() -> None:
    model = Model(memory=5)
    attempts = Attempts(model.compute)
    chunks = [chunk(1) for _ in range(8)]
    assert [result for _, result in attempts.run(chunks)] == [1] * 8
    assert model.batches == [[1] * 8, [1] * 4, [1] * 4]
    assert (attempts.num_out_of_memory, attempts.max_tokens) == (1, 4)
    attempts.run(chunks)
    assert model.batches[3:] == [[1] * 4, [1] * 4]


def test_a_prompt_that_needs_too_much_memory_is_computed_in_smaller_pieces() -> None:
    model = Model(memory=10)
    attempts = Attempts(model.compute)
    results = attempts.run([chunk(1), chunk(31)])
    assert [(done.num_tokens, result) for done, result in results] == [(1, 1), (8, 8)]
    assert not results[1][0].is_last


def test_the_batch_grows_again_after_a_calm_time() -> None:
    model = Model(memory=4)
    attempts = Attempts(model.compute)
    attempts.run([chunk(1) for _ in range(8)])
    model.memory = 1000
    for _ in range(NUM_CALM_STEPS):
        attempts.run([chunk(1)])
    assert attempts.max_tokens == 8


def test_a_single_token_without_memory_fails_with_advice_and_the_others_go_on() -> None:
    model = Model(memory=0)
    results = Attempts(model.compute).run([chunk(1), chunk(1)])
    assert all(isinstance(result, GenerationFailed) for _, result in results)
    assert "max_num_seqs" in str(results[0][1])


def test_a_request_that_crashes_the_model_twice_is_set_aside_and_the_others_go_on() -> None:
    model = Model()
    poison = chunk(1, poison=True)
    results = dict(Attempts(model.compute).run([chunk(2), poison, chunk(3)]))
    failed = results.pop(poison)
    assert isinstance(failed, GenerationFailed)
    assert "66 is too much" in str(failed)
    assert list(results.values()) == [2, 3]
    assert poison.sequence.num_crashes == 2


def test_a_request_that_crashes_once_is_tried_again() -> None:
    results = Attempts(Model(num_crashes=1).compute).run([chunk(1, poison=True)])
    assert [result for _, result in results] == [1]


def test_when_the_device_computes_nothing_any_more_no_request_is_blamed() -> None:
    def broken(chunks: list[Chunk]) -> list[int]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError):
        Attempts(broken).run([chunk(1), chunk(2)])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("HIP out of memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
