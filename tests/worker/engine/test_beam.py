"""Beam search: what it finds, and what becomes of its slots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers.tiny_families import FAMILIES, prompts, tiny_gpt2
from tests.helpers.tiny_model import tiny_checkpoint
from worker.engine.beam import BeamSearch
from worker.engine.engine import Engine
from worker.engine.errors import GenerationFailed, RequestRefused
from worker.engine.request import FinishReason, Request, SamplingParams
from worker.engine.runner import SequentialRunner
from worker.loading import load_model
from worker.streaming import TextStream

WAIT_S = 60
STOPS = {5, 11}
MANY_STOPS = set(range(100))


def found_by_generate(
    model: PreTrainedModel, prompt: tuple[int, ...], *, stops: set[int] = STOPS, **options: object
) -> tuple[int, ...]:
    """The best reply of `generate`, without the token that ended it and the padding behind it."""
    reference = type(model)(model.config).eval()
    reference.load_state_dict(model.state_dict())
    reference.set_attn_implementation("eager")
    ids = torch.tensor([list(prompt)])
    given = {"eos_token_id": sorted(stops), "pad_token_id": 0, "do_sample": False, **options}
    reply = reference.generate(ids, attention_mask=torch.ones_like(ids), **given)[0, len(prompt) :].tolist()
    ends = [place for place, token in enumerate(reply) if token in stops]
    return tuple(reply[: ends[0]] if ends else reply)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize(
    ("stops", "reason"), [(STOPS, FinishReason.LENGTH), (MANY_STOPS, FinishReason.STOP)], ids=["long", "short"]
)
def test_the_reply_is_that_of_generate(family: str, num_beams: int, stops: set[int], reason: FinishReason) -> None:
    model = FAMILIES[family]()
    given = prompts(1, 9, 33, 17, 5, 26)
    expected = [found_by_generate(model, p, stops=stops, num_beams=num_beams, max_new_tokens=16) for p in given]
    params = SamplingParams(num_beams=num_beams, max_new_tokens=16)
    with Engine(model, stop_ids=stops, max_num_seqs=8, max_step_tokens=24) as engine:
        futures = [engine.submit(Request(prompt_ids=prompt, params=params)) for prompt in given]
        completions = [future.result(WAIT_S) for future in futures]
    assert [completion.ids for completion in completions] == expected
    assert reason in {completion.finish_reason for completion in completions}


def test_penalties_and_bans_apply_to_log_probabilities_as_in_generate() -> None:
    [prompt] = prompts(12)
    expected = found_by_generate(
        tiny_gpt2(),
        prompt,
        num_beams=3,
        max_new_tokens=14,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        min_new_tokens=6,
    )
    params = SamplingParams(
        num_beams=3, max_new_tokens=14, repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=6
    )
    with Engine(tiny_gpt2(), stop_ids=STOPS) as engine:
        assert engine.submit(Request(prompt_ids=prompt, params=params)).result(WAIT_S).ids == expected


def test_a_runner_that_cannot_copy_computes_the_beams_anew() -> None:
    [prompt] = prompts(7)
    expected = found_by_generate(tiny_gpt2(), prompt, num_beams=3, max_new_tokens=10)
    engine = Engine(tiny_gpt2(), stop_ids=STOPS)
    model = tiny_gpt2()
    model.set_attn_implementation("eager")
    engine._runner = SequentialRunner(model)
    with engine:
        params = SamplingParams(num_beams=3, max_new_tokens=10)
        assert engine.submit(Request(prompt_ids=prompt, params=params)).result(WAIT_S).ids == expected


def test_beams_and_other_replies_do_not_disturb_each_other() -> None:
    searching, *others = prompts(8, 8, 8, 8)
    plain = SamplingParams(do_sample=False, max_new_tokens=20)
    with Engine(tiny_gpt2(), stop_ids=STOPS, max_num_seqs=5) as engine:
        alone = [engine.submit(Request(prompt_ids=prompt, params=plain)).result(WAIT_S).ids for prompt in others]
        search = SamplingParams(num_beams=4, max_new_tokens=20)
        found = engine.submit(Request(prompt_ids=searching, params=search)).result(WAIT_S).ids
        together = [engine.submit(Request(prompt_ids=prompt, params=plain)) for prompt in others]
        again = engine.submit(Request(prompt_ids=searching, params=search))
        assert [future.result(WAIT_S).ids for future in together] == alone
        assert again.result(WAIT_S).ids == found
    assert sorted(engine._scheduler._free_slots) == [*range(5)]


def test_a_search_whose_time_is_over_ends_with_the_best_so_far() -> None:
    with Engine(tiny_gpt2(), max_generation_s=0.0) as engine:
        params = SamplingParams(num_beams=3, max_new_tokens=50)
        completion = engine.submit(Request(prompt_ids=(1, 2), params=params)).result(WAIT_S)
        assert completion.finish_reason is FinishReason.TIME
        assert 1 <= len(completion.ids) < 50
    assert sorted(engine._scheduler._free_slots) == [*range(16)]


def test_more_beams_than_slots_are_refused() -> None:
    with Engine(tiny_gpt2(), max_num_seqs=2) as engine, pytest.raises(RequestRefused, match="max_num_seqs"):
        engine.submit(Request(prompt_ids=(1,), params=SamplingParams(num_beams=3)))


@pytest.mark.parametrize("stop_strings", [("e",), ("i", "o"), ("no such thing",)], ids=str)
def test_a_stop_string_ends_a_beam_as_in_generate(tmp_path: Path, stop_strings: tuple[str, ...]) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "tiny")), device="cpu", dtype="float32")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tiny" / "tokenizer.json"))
    params = SamplingParams(num_beams=3, max_new_tokens=14)
    heard = TextStream(loaded.layout.decoded, stop_strings)
    expected, completions = [], []
    with Engine.for_model(loaded) as engine:
        for prompt in prompts(12, 30, 7):
            expected.append(
                found_by_generate(
                    loaded.model,
                    prompt,
                    stops=set(loaded.layout.stop_ids),
                    suppress_tokens=sorted(loaded.banned_ids),
                    num_beams=3,
                    max_new_tokens=14,
                    stop_strings=[*stop_strings],
                    tokenizer=tokenizer,
                )
            )
            request = Request(prompt_ids=prompt, params=params, is_complete=heard.is_complete)
            completions.append(engine.submit(request).result(WAIT_S))
    assert [completion.ids for completion in completions] == expected
    is_heard = FinishReason.HEARD in {completion.finish_reason for completion in completions}
    assert is_heard == (stop_strings != ("no such thing",))


def test_an_error_of_who_ends_a_beam_fails_that_request_only() -> None:
    def refuse(_: object) -> bool:
        raise ValueError("not today")

    params = SamplingParams(num_beams=2, max_new_tokens=4)
    with Engine(tiny_gpt2(), max_num_seqs=2) as engine:
        failing = engine.submit(Request(prompt_ids=(1, 2), params=params, is_complete=refuse))
        with pytest.raises(GenerationFailed, match="not today"):
            failing.result(WAIT_S)
        assert len(engine.submit(Request(prompt_ids=(1, 2), params=params)).result(WAIT_S).ids) == 4


def test_who_ends_a_beam_is_asked_once_for_each() -> None:
    asked: set[tuple[int, ...]] = set()

    def is_complete(ids: tuple[int, ...]) -> bool:
        assert ids not in asked, "asked again, outside the search's own steps"
        asked.add(ids)
        return len(ids) == 3

    params = SamplingParams(num_beams=2, max_new_tokens=8)
    with Engine(tiny_gpt2(), max_num_seqs=2) as engine:
        completion = engine.submit(Request(prompt_ids=(1, 2), params=params, is_complete=is_complete)).result(WAIT_S)
        assert (completion.finish_reason, len(completion.ids)) == (FinishReason.HEARD, 3)
        assert completion.ids in asked


def test_a_beam_that_looks_worse_at_first_may_win() -> None:
    search = BeamSearch(num_beams=2, stop_ids=frozenset({0}), max_new_tokens=9)
    assert [step.token for step in search.advance([[(1, -0.5), (2, -0.9), (3, -9.0), (4, -9.0)]])] == [1, 2]
    steps = search.advance([[(3, -4.0), (4, -5.0)], [(0, -0.1), (3, -0.2)]])
    assert (steps[0].parent, steps[0].token) == (1, 3)
    assert search.best().ids == (2, 0)
