"""The engine on real (tiny) models: what it generates, and with whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import PreTrainedModel

from tests.helpers.stepper import PLAIN_GREEDY, WAIT_S, Stepper, generated_by_transformers, ids_of
from tests.helpers.tiny_families import FAMILIES, VOCABULARY_SIZE, WINDOW, prompts, tiny_gpt2
from worker.engine.engine import Engine
from worker.engine.request import FinishReason, Request, SamplingParams


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param]()


@pytest.fixture
def gpt2_engine() -> Iterator[Engine]:
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        yield engine


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


def test_a_completion_says_how_long_it_took(gpt2_engine: Engine) -> None:
    completion = gpt2_engine.submit(Request(prompt_ids=(1, 2), params=SamplingParams(seed=5))).result(WAIT_S)
    assert 0 <= completion.queue_s <= completion.first_token_s <= completion.total_s
    assert (completion.num_prompt_tokens, completion.seed) == (2, 5)
