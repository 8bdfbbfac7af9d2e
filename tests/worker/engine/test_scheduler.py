"""What the scheduler lets each step compute."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.errors import EngineBusy
from worker.engine.request import Chunk, Request, SamplingParams, Sequence
from worker.engine.scheduler import Scheduler


def sequence(num_prompt: int, group: tuple[str, str] = ("", ""), num_beams: int = 1) -> Sequence:
    params = SamplingParams(num_beams=num_beams)
    return Sequence(Request(prompt_ids=(1,) * num_prompt, group=group, params=params))


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


def order_of(scheduler: Scheduler, names: dict[Sequence, str]) -> str:
    """Let everyone run, one after the other, and return their names in that order."""
    order = ""
    while chunks := scheduler.schedule():
        [chunk] = chunks
        order += names[chunk.sequence]
        scheduler.finish(chunk.sequence)
    return order


def test_turns_go_round_between_servers_and_within_each_between_its_conversations() -> None:
    scheduler = Scheduler(max_num_seqs=1)
    names = {}
    for name, group in zip(
        "abcdefgh",
        [("busy", "1")] * 3 + [("busy", "2"), ("quiet", "9"), ("busy", "2"), ("quiet", "9"), ("x", "y")],
        strict=True,
    ):
        one = sequence(2, group)
        names[one] = name
        scheduler.add(one)
    assert order_of(scheduler, names) == "aehdgbfc"


def test_a_crowd_does_not_hold_up_who_comes_later() -> None:
    scheduler = Scheduler(max_num_seqs=1)
    crowd = [sequence(2, ("busy", str(i))) for i in range(50)]
    scheduler.add(*crowd)
    scheduler.finish(scheduler.schedule()[0].sequence)
    late = sequence(2, ("quiet", "1"))
    scheduler.add(late)
    order = order_of(scheduler, {one: "c" for one in crowd} | {late: "l"})
    assert order.index("l") == 1


def test_a_follower_waits_until_its_leader_has_computed_the_prompt_they_share() -> None:
    scheduler = Scheduler(max_num_seqs=4, max_step_tokens=6)
    leader = sequence(10)
    follower = Sequence(leader.request, leader=leader)
    other = sequence(3, ("another", "server"))
    scheduler.add(leader, follower, other)
    steps = []
    for _ in range(3):
        chunks = scheduler.schedule()
        steps.append([chunk.sequence for chunk in chunks])
        computed(chunks)
    assert steps == [[leader], [leader, other], [leader, other, follower]]


def test_a_follower_goes_on_alone_when_its_leader_has_left() -> None:
    scheduler = Scheduler(max_num_seqs=4)
    leader = sequence(10)
    follower = Sequence(leader.request, leader=leader)
    scheduler.add(leader, follower)
    leader.future.cancel()
    scheduler.finish(leader)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [follower]


def test_a_beam_search_holds_a_slot_for_each_beam_and_others_wait_behind_it() -> None:
    scheduler = Scheduler(max_num_seqs=3)
    first, wide, last = sequence(2), sequence(2, num_beams=3), sequence(2)
    scheduler.add(first, wide, last)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [first]
    scheduler.finish(first)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [wide]
    beam = scheduler.fork(wide)
    assert sorted([wide.slot, beam.slot, *wide.reserved_slots]) == [0, 1, 2]
    scheduler.finish(beam)
    scheduler.finish(wide)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [last]
    assert sorted([last.slot, *scheduler._free_slots]) == [0, 1, 2]


def test_several_are_added_together_or_not_at_all() -> None:
    scheduler = Scheduler(max_num_seqs=1, max_num_waiting=3)
    scheduler.add(sequence(1), sequence(1))
    with pytest.raises(EngineBusy):
        scheduler.add(sequence(1), sequence(1))
    assert len(scheduler.waiting) == 2


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
