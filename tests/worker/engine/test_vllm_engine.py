"""vLLM behind the engine's interface: what it is asked for, what it can't do, and its answers where it is installed.

`make test-vllm` runs all of it in an environment with vLLM for CPUs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from personas.conversation import Role, Turn
from personas.errors import SettingsError
from personas.layout import LAYOUTS
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.layouts import tokenizer_json
from tests.helpers.tiny_model import tiny_checkpoint
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed, EngineStopped, RequestRefused
from worker.engine.request import FinishReason, Request, SamplingParams
from worker.engine.vllm_engine import NEVER, VllmEngine, sampling_options
from worker.loading import LoadedModel, load_model
from worker.respond import Responder, make_engine

# vLLM leaves a socket's context to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WAIT_S = 60
STARTER = Path(__file__).parents[3] / "models" / "starter"
IS_INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not IS_INSTALLED, reason="vLLM is not installed here; make test-vllm")
ADA = Persona(name="Ada", facts=("My name is Ada.", "I keep bees."))


def starter() -> LoadedModel:
    return load_model(str(STARTER), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with VllmEngine.for_model(starter(), max_num_seqs=4) as engine:
        yield engine


def prompt(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    turns = (Turn(Role.USER, text),)
    return tuple(loaded.layout.prompt(ADA.facts, turns, max_tokens=loaded.window, reserve=40).ids)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    loaded = starter()
    return [prompt(loaded, text) for text in ("hi! who are you?", "do you like storms?", "what do you do?", "hey", "?")]


def test_greedy_requests_have_no_temperature_and_banned_tokens_the_lowest_bias() -> None:
    params = SamplingParams(do_sample=False, biases=(((5,), 2.0),), bad_words=((6,),), min_new_tokens=3)

    options = sampling_options(params, banned_ids=[7])

    assert options["temperature"] == 0.0
    assert options["logit_bias"] == {5: 2.0, 6: NEVER, 7: NEVER}
    assert options["min_tokens"] == 3


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (SamplingParams(num_beams=2), "num_beams"),
        (SamplingParams(typical_p=0.5), "typical_p"),
        (SamplingParams(no_repeat_ngram_size=3), "no_repeat_ngram_size"),
        (SamplingParams(bad_words=((1, 2),)), "bad_words"),
        (SamplingParams(biases=(((1, 2), 1.0),)), "logit_bias"),
    ],
)
def test_what_vllm_has_not_is_refused_by_its_name(params: SamplingParams, name: str) -> None:
    with pytest.raises(RequestRefused, match=name):
        sampling_options(params)


def test_a_layout_with_token_types_is_refused_before_anything_starts(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    LAYOUTS["convai"](tokenizer_json(), max_tokens=256).write(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")

    with pytest.raises(SettingsError, match="token types"):
        make_engine(loaded, Settings(engine="vllm"))


@pytest.mark.skipif(IS_INSTALLED, reason="vLLM is installed")
def test_where_vllm_is_not_installed_the_error_says_so(tiny_model: Path) -> None:
    with pytest.raises(SettingsError, match=r"vllm was asked for and can't be imported"):
        make_engine(load_model(str(tiny_model), device="cpu", dtype="float32"), Settings(engine="vllm"))


@needs_vllm
def test_greedy_replies_side_by_side_are_those_of_our_engine(
    engine: VllmEngine, prompts: list[tuple[int, ...]]
) -> None:
    params = SamplingParams(do_sample=False, max_new_tokens=24)
    requests = [Request(prompt_ids=ids, params=params, wants_log_prob=True) for ids in prompts]
    with Engine.for_model(starter()) as ours:
        expected = [ours.submit(request).result(WAIT_S) for request in requests]

    found = [future.result(WAIT_S) for future in [engine.submit(request) for request in requests]]

    assert [each.ids for each in found] == [each.ids for each in expected]
    assert [each.finish_reason for each in found] == [each.finish_reason for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.mean_log_prob == pytest.approx(other.mean_log_prob, abs=1e-3)


@needs_vllm
def test_a_seed_gives_the_same_reply_again_alone(engine: VllmEngine, prompts: list[tuple[int, ...]]) -> None:
    def drawn(seed: int) -> tuple[int, ...]:
        params = SamplingParams(seed=seed, temperature=1.0, top_p=1.0, max_new_tokens=12)
        return engine.submit(Request(prompt_ids=prompts[0], params=params)).result(WAIT_S).ids

    assert drawn(2**62 + 1) == drawn(2**62 + 1)
    assert len({drawn(seed) for seed in range(4)}) > 1


@needs_vllm
def test_the_second_request_of_a_conversation_finds_its_beginning(
    engine: VllmEngine, prompts: list[tuple[int, ...]]
) -> None:
    long = prompts[0] * 4
    params = SamplingParams(do_sample=False, max_new_tokens=1)
    engine.submit(Request(prompt_ids=long, params=params)).result(WAIT_S)
    before = engine.prefix_counts.num_reused_tokens

    engine.submit(Request(prompt_ids=long, params=params)).result(WAIT_S)

    assert engine.prefix_counts.num_reused_tokens > before


@needs_vllm
def test_a_listener_ends_the_reply_where_it_says(engine: VllmEngine, prompts: list[tuple[int, ...]]) -> None:
    heard: list[int] = []

    def listen(token: int) -> bool:
        heard.append(token)
        return len(heard) == 3

    params = SamplingParams(do_sample=False, max_new_tokens=30, min_new_tokens=10)
    completion = engine.submit(Request(prompt_ids=prompts[0], params=params, on_token=listen)).result(WAIT_S)

    assert completion.finish_reason is FinishReason.HEARD
    assert completion.ids == tuple(heard)


@needs_vllm
def test_who_has_cancelled_or_has_no_time_left_makes_room(engine: VllmEngine, prompts: list[tuple[int, ...]]) -> None:
    params = SamplingParams(do_sample=False, max_new_tokens=200, min_new_tokens=200)
    long = [engine.submit(Request(prompt_ids=ids, params=params)) for ids in prompts]
    late = engine.submit(Request(prompt_ids=prompts[0], params=params, timeout_s=0.0))
    for future in long:
        future.cancel()

    with pytest.raises(DeadlinePassed):
        late.result(WAIT_S)
    for future in long:
        with pytest.raises(CancelledError):
            future.result(WAIT_S)
    following = engine.submit(Request(prompt_ids=prompts[1], params=SamplingParams(do_sample=False)))
    assert following.result(WAIT_S).ids
    assert (engine.num_running, engine.num_waiting) == (0, 0)


@needs_vllm
def test_a_persona_speaks_by_it_beside_another_engine_that_goes_on(
    engine: VllmEngine, prompts: list[tuple[int, ...]]
) -> None:
    loaded = starter()
    other = make_engine(loaded, Settings(engine="vllm"))
    other.start()
    pieces: list[str] = []

    with Responder(loaded, other) as responder:
        settings = GenerationSettings(seed=3, candidates=1)
        reply = responder.respond(ADA, (Turn(Role.USER, "hi! who are you?"),), settings, stream=pieces.append)

    assert reply.text
    assert "".join(pieces) == reply.text
    with pytest.raises(EngineStopped):
        other.submit(Request(prompt_ids=prompts[0]))
    assert engine.submit(Request(prompt_ids=prompts[0], params=SamplingParams(do_sample=False))).result(WAIT_S).ids
