"""How a request ends besides by a reply: refused, cancelled, out of time, failed, or with its engine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, wait

import pytest
import torch

from tests.helpers.stepper import PLAIN_GREEDY, WAIT_S, Stepper, generated_by_transformers, ids_of
from tests.helpers.tiny_families import VOCABULARY_SIZE, WINDOW, prompts, tiny_gpt2
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed, EngineBusy, EngineStopped, GenerationFailed, RequestRefused
from worker.engine.request import Chunk, FinishReason, Request, SamplingParams
from worker.engine.runner import Computed


@pytest.fixture
def gpt2_engine() -> Iterator[Engine]:
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        yield engine


@pytest.mark.parametrize(
    "prompt", [(), (VOCABULARY_SIZE,), (-1,), (1,) * WINDOW], ids=["empty", "big", "negative", "long"]
)
def test_a_prompt_that_can_never_run_is_refused(gpt2_engine: Engine, prompt: tuple[int, ...]) -> None:
    with pytest.raises(RequestRefused):
        gpt2_engine.submit(Request(prompt_ids=prompt))


def test_the_queue_is_bounded() -> None:
    engine = Engine(tiny_gpt2(), max_num_seqs=1, max_num_waiting=1)
    stepper = Stepper(engine)
    with engine:
        first = engine.submit(Request(prompt_ids=(1,), params=PLAIN_GREEDY))
        stepper.await_step()  # the first one has left the queue
        second = engine.submit(Request(prompt_ids=(2,), params=PLAIN_GREEDY))
        with pytest.raises(EngineBusy):
            engine.submit(Request(prompt_ids=(3,), params=PLAIN_GREEDY))
        stepper.allow(100)
        assert ids_of(first)
        assert ids_of(second)


def test_a_cancelled_request_leaves_between_two_steps() -> None:
    engine = Engine(tiny_gpt2(), max_num_seqs=2)
    stepper = Stepper(engine)
    with engine:
        leaving = engine.submit(Request(prompt_ids=(1, 2, 3), params=PLAIN_GREEDY))
        staying = engine.submit(Request(prompt_ids=(4, 5, 6), params=PLAIN_GREEDY))
        stepper.await_step()
        assert leaving.cancel()
        stepper.allow(100)
        with pytest.raises(CancelledError):
            leaving.result(WAIT_S)
        assert len(ids_of(staying)) == 24
    assert all(len(batch) == 1 for batch in stepper.batches[2:])


def test_a_request_whose_time_is_over_before_its_first_token_is_told_so(gpt2_engine: Engine) -> None:
    with pytest.raises(DeadlinePassed):
        gpt2_engine.submit(Request(prompt_ids=(1, 2), timeout_s=-1.0)).result(WAIT_S)


def test_a_reply_under_way_when_time_is_over_ends_with_what_it_has() -> None:
    engine = Engine(tiny_gpt2(), max_generation_s=0.0)
    with engine:
        params = SamplingParams(max_new_tokens=100)
        completion = engine.submit(Request(prompt_ids=(1, 2), params=params)).result(WAIT_S)
    assert completion.finish_reason is FinishReason.TIME
    assert 1 <= len(completion.ids) < 100


def test_an_error_in_a_step_fails_only_the_request_that_causes_it() -> None:
    engine = Engine(tiny_gpt2(), max_num_seqs=4)
    inner = engine._runner.run

    def run(chunks: Sequence[Chunk]) -> Computed:
        if any(66 in chunk.sequence.request.prompt_ids for chunk in chunks):
            raise RuntimeError("out of luck")
        return inner(chunks)

    engine._runner.run = run
    with engine:
        futures = [engine.submit(Request(prompt_ids=ids, params=PLAIN_GREEDY)) for ids in ((1, 2), (66,), (3,))]
        with pytest.raises(GenerationFailed, match="out of luck"):
            futures[1].result(WAIT_S)
        alone = [
            generated_by_transformers(tiny_gpt2(), ids, do_sample=False, max_new_tokens=24) for ids in ((1, 2), (3,))
        ]
        assert [ids_of(futures[0]), ids_of(futures[2])] == alone
        assert len(ids_of(engine.submit(Request(prompt_ids=(9,), params=PLAIN_GREEDY)))) == 24


def test_damaged_weights_fail_the_request_with_advice() -> None:
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with Engine(model) as engine, pytest.raises(GenerationFailed, match="float32"):
        engine.submit(Request(prompt_ids=(1, 2))).result(WAIT_S)


def test_a_stop_ends_what_is_under_way_and_refuses_what_comes() -> None:
    engine = Engine(tiny_gpt2())
    stepper = Stepper(engine)
    engine.start()
    future = engine.submit(Request(prompt_ids=(1, 2), params=PLAIN_GREEDY))
    stepper.await_step()
    stepper.allow(3)
    engine.stop()
    with pytest.raises(EngineStopped):
        future.result(WAIT_S)
    with pytest.raises(EngineStopped):
        engine.submit(Request(prompt_ids=(1, 2)))


def test_a_draining_stop_answers_everyone_first() -> None:
    engine = Engine(tiny_gpt2(), max_num_seqs=1)
    engine.start()
    futures = [engine.submit(Request(prompt_ids=(i,), params=PLAIN_GREEDY)) for i in range(3)]
    engine.stop(drain=True)
    assert all(len(ids_of(future)) == 24 for future in futures)


def test_a_dying_engine_leaves_nobody_waiting() -> None:
    engine = Engine(tiny_gpt2())

    def schedule() -> list[Chunk]:
        raise AssertionError("a defect")

    engine._scheduler.schedule = schedule
    with engine:
        with pytest.raises(EngineStopped, match="a defect"):
            engine.submit(Request(prompt_ids=(1, 2))).result(WAIT_S)
        with pytest.raises(EngineStopped):
            engine.submit(Request(prompt_ids=(1, 2)))


def test_under_random_load_every_request_ends_one_way_and_every_slot_is_free_again() -> None:
    draw = random.Random(3)
    given = prompts(*(draw.randint(1, 60) for _ in range(60)))
    with Engine(tiny_gpt2(), stop_ids=range(20), max_num_seqs=5, max_step_tokens=32) as engine:
        futures = []
        for seed, prompt in enumerate(given):
            params = SamplingParams(seed=seed, max_new_tokens=draw.randint(1, 30), temperature=1.5)
            timeout_s = draw.choice([None, None, 0.001, 60.0])
            futures.append(engine.submit(Request(prompt_ids=prompt, params=params, timeout_s=timeout_s)))
            if draw.random() < 0.3:
                draw.choice(futures).cancel()
        wait(futures, WAIT_S)
        ends = Counter("cancelled" if f.cancelled() else type(f.exception() or f.result()).__name__ for f in futures)
        assert set(ends) <= {"cancelled", "DeadlinePassed", "Completion"}
        assert ends["Completion"] > 20
        # A last request, so that those cancelled at the end have left as well.
        last = [engine.submit(Request(prompt_ids=(1,), params=PLAIN_GREEDY)) for _ in range(5)]
        wait(last, WAIT_S)
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    assert sorted(engine._scheduler._free_slots) == [*range(5)]
