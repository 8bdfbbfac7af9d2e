"""What the scheduler lets each step compute."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.errors import EngineBusy
from worker.engine.request import Chunk, Request, Sequence
from worker.engine.scheduler import Scheduler


def sequence(num_prompt: int) -> Sequence:
    return Sequence(Request(prompt_ids=(1,) * num_prompt))


def computed(chunks: list[Chunk]) -> None:
    """Do what the engine does after a step."""
    for chunk in chunks:
        is_last = chunk.is_last
        chunk.sequence.num_cached_tokens = chunk.end
        if is_last:
            chunk.sequence.ids.append(1)


def sizes(chunks: list[Chunk]) -> list[int]:
    return [chunk.num_tokens for chunk in chunks]


def test_replies_under_way_and_new_prompts_share_a_step() -> None:
    scheduler = Scheduler(max_num_seqs=4)
    scheduler.add(sequence(5))
    computed(scheduler.schedule())
    scheduler.add(sequence(7))
    assert sizes(scheduler.schedule()) == [1, 7]


def test_a_long_prompt_is_computed_in_pieces_beside_the_others() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_step_tokens=8)
    scheduler.add(sequence(3))
    computed(scheduler.schedule())
    scheduler.add(sequence(20))
    steps = []
    for _ in range(4):
        chunks = scheduler.schedule()
        steps.append(sizes(chunks))
        computed(chunks)
    assert steps == [[1, 7], [1, 7], [1, 6], [1, 1]]


def test_the_rest_wait_for_a_slot_in_the_order_they_came() -> None:
    scheduler = Scheduler(max_num_seqs=2)
    first, second, third, fourth = (sequence(2) for _ in range(4))
    for one in (first, second, third, fourth):
        scheduler.add(one)
    computed(scheduler.schedule())
    assert [one.slot for one in (first, second, third, fourth)] == [0, 1, None, None]
    scheduler.finish(first)
    scheduler.schedule()
    assert (third.slot, fourth.slot) == (0, None)


def test_a_waiting_sequence_can_leave() -> None:
    scheduler = Scheduler(max_num_seqs=1)
    first, second = sequence(2), sequence(2)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.schedule()
    scheduler.finish(second)
    assert scheduler.everyone() == [first]


def test_no_more_than_the_limit_may_wait() -> None:
    scheduler = Scheduler(max_num_seqs=1, max_num_waiting=2)
    scheduler.add(sequence(1))
    scheduler.add(sequence(1))
    with pytest.raises(EngineBusy):
        scheduler.add(sequence(1))


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 10)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(1, 30),
)
def test_everyone_gets_done_and_slots_are_never_shared(
    requests: list[tuple[int, int]], max_num_seqs: int, max_step_tokens: int
) -> None:
    scheduler = Scheduler(max_num_seqs=max_num_seqs, max_step_tokens=max_step_tokens)
    wanted = {}
    for num_prompt, num_new in requests:
        one = sequence(num_prompt)
        wanted[id(one)] = num_new
        scheduler.add(one)
    for _ in range(2000):
        chunks = scheduler.schedule()
        if not chunks:
            break
        slots = [chunk.sequence.slot for chunk in chunks]
        assert len(set(slots)) == len(slots) <= max_num_seqs
        assert None not in slots
        assert sum(sizes(chunks)) <= max(max_step_tokens, max_num_seqs + 1)
        computed(chunks)
        for one in list(scheduler.running):
            if one.num_new_tokens >= wanted[id(one)]:
                scheduler.finish(one)
    assert not scheduler.everyone()
