"""Voices in the pool: who speaks with them, what they follow, and when they are let go."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from personas.registry import Registry
from personas.settings import Settings
from personas.voices import give, roll_back, withdraw
from tests.helpers.pool import ADA, BOB, Seen, answering, truncated
from tests.helpers.worker_process import PATIENCE_S, wait_until
from worker import models
from worker.models import ModelPool
from worker.respond import Responder


def test_who_is_given_a_voice_speaks_with_it_and_nobody_else_does(pool: ModelPool, registry: Registry) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    give(registry, "BOB", "eve")
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")
    assert answering(pool, default)()
    assert {state.name: state.serves for state in pool.loaded()} == {"ada": ("",), "eve": ("eve",)}
    assert answering(pool, default, BOB.model_copy(update={"checkpoint": "ada"}))(), "the file comes first"


def test_a_voice_follows_promotions_and_rollbacks_down_to_the_default(
    pool: ModelPool, registry: Registry, tinies: list[Path]
) -> None:
    default, one = registry.version("ada"), registry.version("eve")
    give(registry, "Bob", "eve")
    two = registry.promote(registry.add(tinies[1], "eve").reference)
    wait_until(answering(pool, two, BOB), "the second version of the voice speaks")
    roll_back(registry, "eve")
    wait_until(answering(pool, one, BOB), "the first version of the voice speaks")
    roll_back(registry, "eve")
    wait_until(answering(pool, default, BOB), "the default speaks")
    assert answering(pool, default)()


def test_until_a_voice_is_loaded_its_persona_speaks_as_before(
    pool: ModelPool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, is_loading, may_load = registry.version("eve"), threading.Event(), threading.Event()
    start = models.start_responder

    def start_in_time(*arguments: Any, **options: Any) -> Responder:
        is_loading.set()
        may_load.wait(PATIENCE_S)
        return start(*arguments, **options)

    monkeypatch.setattr(models, "start_responder", start_in_time)
    give(registry, "Bob", "eve")
    assert is_loading.wait(PATIENCE_S)
    assert answering(pool, registry.version("ada"), BOB)()
    may_load.set()
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")


def test_a_voice_that_cannot_be_loaded_leaves_the_default_speaking_and_says_why(
    pool: ModelPool, registry: Registry, board: Seen
) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    truncated(voice.folder)
    give(registry, "Bob", "eve")
    wait_until(lambda: board.failures, "the failure is published")
    assert board.failures[0][0] == "eve"
    assert "damaged" in board.failures[0][1]
    assert answering(pool, default, BOB)()


def test_a_voice_that_was_taken_away_is_let_go(settings: Settings, registry: Registry, board: Seen) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    give(registry, "Bob", "eve")
    with ModelPool(settings, board=board, idle_s=0) as pool:
        assert [state.name for state in pool.loaded()] == ["ada"], "a voice is loaded when somebody talks to it"
        assert answering(pool, voice, BOB)()
        withdraw(registry, "Bob")
        wait_until(answering(pool, default, BOB), "Bob speaks with the default")
        wait_until(lambda: [state.name for state in pool.loaded()] == ["ada"], "the voice is gone")


def test_a_damaged_list_of_voices_costs_nobody_a_reply(pool: ModelPool, registry: Registry, board: Seen) -> None:
    voice = registry.version("eve")
    give(registry, "Bob", "eve")
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")
    (registry.folder / "voices.json").write_text("{")
    wait_until(lambda: board.failures, "the failure is published")
    assert board.failures[0][0] == "voices.json"
    assert answering(pool, voice, BOB)()
    (registry.folder / "voices.json").unlink()
    wait_until(answering(pool, registry.version("ada"), BOB), "the default speaks")


def pass_by(pool: ModelPool, registry: Registry) -> None:
    """Return when the pool has looked at everything that is in the registry now."""
    one, two = registry.versions("ada")
    for version in (two, one):
        registry.promote(version.reference)
        wait_until(answering(pool, version), "what was promoted answers")


def test_a_voice_that_nobody_has_any_more_follows_no_promotion(
    pool: ModelPool, registry: Registry, tinies: list[Path]
) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    give(registry, "Bob", "eve")
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")
    withdraw(registry, "Bob")
    wait_until(answering(pool, default, BOB), "Bob speaks with the default")
    two = registry.promote(registry.add(tinies[1], "eve").reference)
    pass_by(pool, registry)
    assert two.reference not in {state.reference for state in pool.loaded()}
    give(registry, "Bob", "eve")
    wait_until(answering(pool, two, BOB), "Bob speaks with the version that is current")


def test_a_voice_that_failed_is_not_tried_again_for_nobody(pool: ModelPool, registry: Registry, board: Seen) -> None:
    voice = registry.version("eve")
    truncated(voice.folder)
    give(registry, "Bob", "eve")
    wait_until(lambda: board.failures, "the failure is published")
    withdraw(registry, "Bob")
    pass_by(pool, registry)
    (voice.folder / "tokenizer.json").unlink()  # a further failure would say so
    pass_by(pool, registry)
    assert [reference for reference, _ in board.failures] == ["eve"]


def test_a_former_voice_that_a_personas_file_names_is_shown_and_stays(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    written = ADA.model_copy(update={"checkpoint": "eve"})
    give(registry, "Bob", "eve")
    with ModelPool(settings, board=board, idle_s=0) as pool:
        assert answering(pool, voice, BOB)()
        withdraw(registry, "Bob")
        wait_until(answering(pool, default, BOB), "Bob speaks with the default")
        pass_by(pool, registry)
        assert answering(pool, voice, written)()
        pass_by(pool, registry)
        assert {state.serves for state in pool.loaded() if state.name == "eve"} == {("eve",)}
