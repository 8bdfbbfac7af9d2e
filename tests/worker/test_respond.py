"""From persona and turns to a reply."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personas.conversation import Role, Turn
from personas.persona import ExampleTurn, GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.tiny_model import tiny_checkpoint
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed
from worker.engine.request import Completion, FinishReason, Request
from worker.loading import load_model
from worker.respond import FALLBACK_TEXT, MAX_RETRIES, Responder, readable, start_responder

ADA = Persona(
    name="Ada",
    facts=("My name is Ada.", "I keep bees."),
    examples=(ExampleTurn(user="hello", bot="good morning!"),),
    generation=GenerationSettings(max_new_tokens=6),
)
HELLO = (Turn(Role.USER, "hello, who are you?"),)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_new_tokens=12)


@pytest.fixture(scope="module")
def responder(tiny: Path) -> Iterator[Responder]:
    with start_responder(Settings(model=str(tiny), dtype="float32", max_num_seqs=4)) as started:
        yield started


class CountingEngine(Engine):
    """Remembers what it was asked, and lets a reply end at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.requests: list[Request] = []

    def submit(self, request: Request) -> Future[Completion]:
        self.requests.append(request)
        return super().submit(replace(request, params=replace(request.params, min_new_tokens=0)))


def test_a_reply_says_who_made_it_and_how(responder: Responder) -> None:
    reply = responder.respond(ADA, HELLO, GenerationSettings(seed=3))
    assert reply.text
    assert reply.seed == 3
    assert reply.model == f"tiny@{responder.loaded.digest}"
    assert (reply.num_new_tokens, reply.finish_reason) == (6, FinishReason.LENGTH)
    assert not reply.is_fallback


def test_the_same_seed_gives_the_same_reply_alone_and_beside_others(responder: Responder) -> None:
    alone = [responder.respond(ADA, HELLO, GenerationSettings(seed=seed)).text for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda seed: responder.respond(ADA, HELLO, GenerationSettings(seed=seed)).text, range(8))
    assert [*together] == alone
    assert len(set(alone)) > 1


def test_without_a_seed_replies_differ_and_each_names_the_seed_that_repeats_it(responder: Responder) -> None:
    first, second = (responder.respond(ADA, HELLO) for _ in range(2))
    assert first.seed != second.seed
    assert responder.respond(ADA, HELLO, GenerationSettings(seed=first.seed)).text == first.text


def test_each_layer_of_settings_overrides_the_one_below(tiny: Path) -> None:
    plain = Persona(name="Bob", facts=("My name is Bob.",))
    loaded = load_model(str(tiny), device="cpu", dtype="float32")
    with Engine.for_model(loaded) as engine:
        ours = Responder(loaded, engine)
        operators = Responder(ours.loaded, ours.engine, defaults=GenerationSettings(max_new_tokens=9))
        lengths = [
            ours.respond(plain, HELLO).num_new_tokens,
            operators.respond(plain, HELLO).num_new_tokens,
            operators.respond(ADA, HELLO).num_new_tokens,
            operators.respond(ADA, HELLO, GenerationSettings(max_new_tokens=3)).num_new_tokens,
        ]
    assert lengths == [12, 9, 6, 3]


def test_what_does_not_fit_is_left_out_and_counted(responder: Responder) -> None:
    turns = [Turn(role, "one two three four five") for _ in range(40) for role in (Role.USER, Role.BOT)]
    reply = responder.respond(ADA, [*turns, *HELLO])
    assert reply.num_dropped_turns > 0
    assert reply.num_prompt_tokens + reply.num_new_tokens <= responder.loaded.window


def test_max_length_bounds_prompt_and_reply_together(responder: Responder) -> None:
    turns = [Turn(role, "one two three") for _ in range(20) for role in (Role.USER, Role.BOT)]
    reply = responder.respond(ADA, [*turns, *HELLO], GenerationSettings(max_length=100, max_new_tokens=20))
    assert reply.num_prompt_tokens + reply.num_new_tokens <= 100


def test_text_full_of_markup_is_answered_like_any_other(responder: Responder) -> None:
    reply = responder.respond(ADA, [Turn(Role.USER, "<eos><speaker1>\x00 \U0001f41d {{ facts }}" * 50)])
    assert reply.text


def test_a_model_that_says_nothing_gets_another_seed_and_then_a_fallback(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu", dtype="float32")
    silent = frozenset(range(loaded.model.config.vocab_size))
    with CountingEngine(loaded.model, stop_ids=silent) as engine:
        reply = Responder(loaded, engine).respond(ADA, HELLO, GenerationSettings(seed=1))
    assert (reply.text, reply.is_fallback, reply.seed) == (FALLBACK_TEXT, True, 1)
    seeds = [request.params.seed for request in engine.requests]
    assert len(set(seeds)) == MAX_RETRIES + 1


def test_a_deadline_that_has_passed_is_an_error(responder: Responder) -> None:
    with pytest.raises(DeadlinePassed):
        responder.respond(ADA, HELLO, deadline=time.time() - 1)


def test_a_deadline_ahead_changes_nothing(responder: Responder) -> None:
    settings = GenerationSettings(seed=4)
    without = responder.respond(ADA, HELLO, settings)
    assert responder.respond(ADA, HELLO, settings, deadline=time.time() + 100).text == without.text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("a\x00b\x1b[31m", "ab[31m"), ("cut \ufffd\ufffd", "cut"), (" two\nlines\t", "two\nlines"), ("\x07", "")],
)
def test_a_reply_holds_no_control_characters_and_no_half_characters(raw: str, shown: str) -> None:
    assert readable(raw) == shown
