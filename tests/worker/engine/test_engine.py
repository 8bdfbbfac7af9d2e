"""The engine on real (tiny) models: what it generates, with whom, and how a request ends."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest
import torch
from transformers import PreTrainedModel

from tests.helpers.tiny_families import FAMILIES, VOCABULARY_SIZE, WINDOW, prompts, tiny_gpt2
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed, EngineBusy, EngineStopped, GenerationFailed, RequestRefused
from worker.engine.request import Chunk, Completion, FinishReason, Request, SamplingParams
from worker.engine.runner import Computed

WAIT_S = 60
PLAIN_GREEDY = SamplingParams(do_sample=False, repetition_penalty=1.0, max_new_tokens=24)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param]()


@pytest.fixture
def gpt2_engine() -> Iterator[Engine]:
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        yield engine


class Stepper:
    """Stands before an engine's runner and lets a test decide when a step runs."""

    def __init__(self, engine: Engine) -> None:
        self.batches: list[list[Chunk]] = []
        self._inner = engine._runner
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.vocabulary_size = self._inner.vocabulary_size
        engine._runner = self

    def run(self, chunks: Sequence[Chunk]) -> Computed:
        self.batches.append(list(chunks))
        self._arrived.release()
        assert self._permits.acquire(timeout=WAIT_S)
        return self._inner.run(chunks)

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        return self._inner.attach(slot, ids)

    def release(self, slot: int, ids: Sequence[int]) -> None:
        self._inner.release(slot, ids)

    def await_step(self) -> None:
        """Return when the engine stands before its next step."""
        assert self._arrived.acquire(timeout=WAIT_S)

    def allow(self, num_steps: int = 1) -> None:
        """Let the step that waits run, and the following ones up to `num_steps`."""
        self._permits.release(num_steps)


def generated_by_transformers(model: PreTrainedModel, prompt: Sequence[int], **options: object) -> tuple[int, ...]:
    reference = type(model)(model.config).eval()
    reference.load_state_dict(model.state_dict())
    reference.set_attn_implementation("eager")
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    out = reference.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return tuple(out[0, len(prompt) :].tolist())


def ids_of(future: Future[Completion]) -> tuple[int, ...]:
    return future.result(WAIT_S).ids


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_greedy_replies_are_those_of_generate(model: PreTrainedModel, options: dict[str, float]) -> None:
    params = SamplingParams(**{"do_sample": False, "max_new_tokens": 24, "repetition_penalty": 1.0, **options})
    given = prompts(1, 9, 40, 17, 3)
    expected = [
        generated_by_transformers(model, prompt, do_sample=False, max_new_tokens=24, **options) for prompt in given
    ]
    with Engine(model, max_num_seqs=3) as engine:
        futures = [engine.submit(Request(prompt_ids=prompt, params=params)) for prompt in given]
        assert [ids_of(future) for future in futures] == expected


def test_prompts_that_join_at_different_steps_are_answered_as_alone(model: PreTrainedModel) -> None:
    given = prompts(5, 30, 1, 12)
    expected = [generated_by_transformers(model, prompt, do_sample=False, max_new_tokens=24) for prompt in given]
    engine = Engine(model, max_num_seqs=4, max_step_tokens=8)  # prompts are computed in pieces, too
    stepper = Stepper(engine)
    futures = []
    with engine:
        for prompt in given:
            futures.append(engine.submit(Request(prompt_ids=prompt, params=PLAIN_GREEDY)))
            stepper.await_step()
            stepper.allow()
        stepper.allow(100)
        assert [ids_of(future) for future in futures] == expected
    assert {len(batch) for batch in stepper.batches} == {1, 2, 3, 4}


def test_a_reply_with_a_seed_is_the_same_alone_and_in_any_batch(model: PreTrainedModel) -> None:
    requests = [
        Request(
            prompt_ids=prompt,
            params=SamplingParams(seed=seed, temperature=0.5 + seed / 4, top_k=seed % 3 * 20, top_p=0.8 + seed / 20),
        )
        for seed, prompt in enumerate(prompts(4, 25, 7, 33))
    ]
    with Engine(model, max_num_seqs=4) as engine:
        alone = [ids_of(engine.submit(request)) for request in requests]
        together = [engine.submit(request) for request in reversed(requests)]
        assert [ids_of(future) for future in reversed(together)] == alone
    assert len(set(alone)) == len(alone)


def test_another_seed_gives_another_reply(gpt2_engine: Engine) -> None:
    [prompt] = prompts(10)
    replies = {
        ids_of(gpt2_engine.submit(Request(prompt_ids=prompt, params=SamplingParams(seed=seed)))) for seed in range(5)
    }
    assert len(replies) == 5


def test_a_reply_ends_before_the_stop_token() -> None:
    [prompt] = prompts(10)
    whole = generated_by_transformers(tiny_gpt2(), prompt, do_sample=False, max_new_tokens=24)
    with Engine(tiny_gpt2(), stop_ids={whole[5]}) as engine:
        completion = engine.submit(Request(prompt_ids=prompt, params=PLAIN_GREEDY)).result(WAIT_S)
    assert completion.ids == whole[: whole.index(whole[5])]
    assert completion.finish_reason is FinishReason.STOP


def test_min_new_tokens_holds_the_stop_token_back() -> None:
    [prompt] = prompts(10)
    first = generated_by_transformers(tiny_gpt2(), prompt, do_sample=False, max_new_tokens=1)
    params = SamplingParams(do_sample=False, repetition_penalty=1.0, min_new_tokens=4, max_new_tokens=9)
    with Engine(tiny_gpt2(), stop_ids=first) as engine:
        ids = ids_of(engine.submit(Request(prompt_ids=prompt, params=params)))
    model = tiny_gpt2()
    expected = generated_by_transformers(
        model, prompt, do_sample=False, min_new_tokens=4, max_new_tokens=9, eos_token_id=first[0]
    )
    assert ids == tuple(token for token in expected if token != first[0])
    assert len(ids) >= 4


def test_banned_tokens_are_never_chosen() -> None:
    banned = set(range(VOCABULARY_SIZE)) - {7, 8, 9}
    with Engine(tiny_gpt2(), banned_ids=banned) as engine:
        for params in (PLAIN_GREEDY, SamplingParams(seed=3, top_p=1.0, temperature=3.0)):
            assert set(ids_of(engine.submit(Request(prompt_ids=(1, 2), params=params)))) <= {7, 8, 9}


def test_a_reply_that_would_pass_the_window_is_cut_there(gpt2_engine: Engine) -> None:
    [prompt] = prompts(WINDOW - 5)
    params = SamplingParams(max_new_tokens=1000)
    completion = gpt2_engine.submit(Request(prompt_ids=prompt, params=params)).result(WAIT_S)
    assert len(completion.ids) == 5
    assert completion.finish_reason is FinishReason.LENGTH


def test_max_length_counts_the_prompt(gpt2_engine: Engine) -> None:
    [prompt] = prompts(10)
    params = SamplingParams(max_length=14)
    assert len(ids_of(gpt2_engine.submit(Request(prompt_ids=prompt, params=params)))) == 4


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


def test_a_completion_says_how_long_it_took(gpt2_engine: Engine) -> None:
    completion = gpt2_engine.submit(Request(prompt_ids=(1, 2), params=SamplingParams(seed=5))).result(WAIT_S)
    assert 0 <= completion.queue_s <= completion.first_token_s <= completion.total_s
    assert (completion.num_prompt_tokens, completion.seed) == (2, 5)
