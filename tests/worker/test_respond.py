"""From persona and turns to a reply."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from personas.conversation import Role, Turn
from personas.persona import ExampleTurn, GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.tiny_model import tiny_checkpoint
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed
from worker.engine.request import Completion, FinishReason, Request
from worker.generate import Task
from worker.loading import load_model
from worker.respond import FALLBACK_TEXT, MAX_RETRIES, Responder, start_responder
from worker.streaming import TextStream

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

    def submit_together(self, requests: Iterable[Request]) -> list[Future[Completion]]:
        asked = list(requests)
        self.requests += asked
        return super().submit_together(replace(one, params=replace(one.params, min_new_tokens=0)) for one in asked)


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


def test_a_reply_is_told_in_pieces_as_it_comes(responder: Responder) -> None:
    settings = GenerationSettings(seed=5, max_new_tokens=20)
    pieces: list[str] = []
    reply = responder.respond(ADA, HELLO, settings, stream=pieces.append)
    assert "".join(pieces) == reply.text == responder.respond(ADA, HELLO, settings).text
    assert len(pieces) > 5


@pytest.mark.parametrize("how", [{"candidates": 3}, {"num_beams": 2}], ids=str)
def test_a_reply_that_is_known_only_at_the_end_is_told_at_the_end(responder: Responder, how: dict[str, int]) -> None:
    pieces: list[str] = []
    reply = responder.respond(ADA, HELLO, GenerationSettings(seed=5, **how), stream=pieces.append)
    assert pieces == [reply.text]


def test_a_fallback_is_told_like_a_reply(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu", dtype="float32")
    pieces: list[str] = []
    with CountingEngine(loaded.model, stop_ids=range(loaded.model.config.vocab_size)) as engine:
        Responder(loaded, engine).respond(ADA, HELLO, GenerationSettings(seed=1), stream=pieces.append)
    assert pieces == [FALLBACK_TEXT]


def test_a_reply_ends_before_a_stop_string(responder: Responder) -> None:
    settings = GenerationSettings(seed=5, max_new_tokens=20)
    whole = responder.respond(ADA, HELLO, settings)
    stop = whole.text[4:6]
    pieces: list[str] = []
    cut = responder.respond(ADA, HELLO, GenerationSettings(stop_strings=(stop,)).over(settings), stream=pieces.append)
    assert cut.text == "".join(pieces) == whole.text[: whole.text.index(stop)].strip()
    assert cut.finish_reason is FinishReason.HEARD
    assert cut.num_new_tokens < whole.num_new_tokens


def test_a_bad_word_is_never_said(responder: Responder) -> None:
    settings = GenerationSettings(seed=5, max_new_tokens=20, logit_bias={"thank": 100.0})
    assert "thank" in responder.respond(ADA, HELLO, settings).text
    assert "thank" not in responder.respond(ADA, HELLO, GenerationSettings(bad_words=("thank",)).over(settings)).text


def test_a_bias_makes_a_word_likelier(responder: Responder) -> None:
    settings = GenerationSettings(seed=5, max_new_tokens=4, logit_bias={"e": 100.0}, repetition_penalty=1.0)
    assert set(responder.respond(ADA, HELLO, settings).text) <= {"e", " "}


def test_of_several_candidates_one_is_said_that_was_drawn_with_a_seed_of_its_own(responder: Responder) -> None:
    single = responder.respond(ADA, HELLO, GenerationSettings(seed=5, candidates=1))
    assert single.text == responder.respond(ADA, HELLO, GenerationSettings(seed=5)).text
    several = [responder.respond(ADA, HELLO, GenerationSettings(seed=5, candidates=n)) for n in (4, 4)]
    assert several[0].text == several[1].text
    assert several[0].seed == 5


def test_a_next_utterance_head_takes_part_in_choosing(responder: Responder) -> None:
    class Longest:
        heard: ClassVar[list[int]] = []

        def scores(self, sequences: Sequence[Sequence[int]], **_: object) -> list[float]:
            self.heard += [len(sequence) for sequence in sequences]
            return [100.0 if place == 2 else 0.0 for place in range(len(sequences))]

    settings = GenerationSettings(seed=5, candidates=3)
    ranked = Responder(responder.loaded, responder.engine, ranker=Longest())
    third = ranked.respond(ADA, HELLO, settings).text
    task = Task.of(settings, responder.loaded.layout, ends=None, group=("", ""), stream=None)
    seed = task.request((1,), 2, TextStream(responder.loaded.layout.decoded)).params.seed
    assert third == responder.respond(ADA, HELLO, GenerationSettings(seed=seed)).text
    assert len(Longest.heard) == 3
