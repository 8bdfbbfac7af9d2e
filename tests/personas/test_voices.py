"""Voices: who speaks with which checkpoint, and what a training may be called so that nobody else hears it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from personas.errors import CheckpointRefused, NoEarlierVersion, RegistryError
from personas.lineage import Figure, Lineage, Verdict
from personas.persona import Persona
from personas.registry import VOICES_FILE, Registry
from personas.settings import Settings
from personas.voices import (
    caution,
    checkpoint_of,
    give,
    given_voices,
    heard_by_others,
    obstacle,
    read_voices,
    roll_back,
    speakers,
    speakers_of,
    withdraw,
)
from tests.helpers.bare_checkpoint import bare_checkpoint

BOB, EVE = Persona(name="Bob"), Persona(name="Eve")
REFUSED = Verdict(figures=(Figure(name="probe", value=0, limit=1, rule="at least"),))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`baker` with two versions, the first of which is current, and `general`, which is chosen."""
    bare_checkpoint(tmp_path / "models" / "starter", "shipped")
    registry = Registry(tmp_path / "checkpoints", shipped=tmp_path / "models")
    for content in ("one", "two"):
        registry.add(bare_checkpoint(tmp_path / content, content), "baker")
    registry.promote("baker@1")
    registry.promote(registry.add(bare_checkpoint(tmp_path / "all", "all"), "general").reference)
    registry.choose("general")
    return registry


def with_file(persona: Persona, checkpoint: str) -> Persona:
    return persona.model_copy(update={"checkpoint": checkpoint})


def test_a_personas_file_comes_before_its_voice_and_the_voice_before_the_default() -> None:
    given = {"bob": "baker"}
    assert checkpoint_of(BOB, given) == "baker"
    assert checkpoint_of(with_file(BOB, "eve@3"), given) == "eve@3"
    assert checkpoint_of(EVE, given) == ""
    assert checkpoint_of(Persona(name="BOB"), given) == "baker"
    assert speakers([BOB, EVE], given) == {"Bob": "baker"}
    assert speakers_of([BOB, EVE, with_file(Persona(name="Ann"), "baker")], given) == {"baker": ["Bob", "Ann"]}


@pytest.mark.parametrize(
    ("name", "persona", "why"),
    [
        ("new", BOB, ""),
        ("baker", BOB, ""),
        ("baker", EVE, "Bob would speak with baker too"),
        ("general", BOB, "general is what answers for everybody"),
        ("pinned", BOB, "Ann would speak with pinned too"),
        ("new", with_file(BOB, "old"), "Bob's file says checkpoint: old"),
        ("old", with_file(BOB, "old"), ""),
        ("general", None, ""),
        ("new", None, ""),
        ("baker", None, "baker is the voice of Bob: train it with persona=Bob"),
        ("pinned", None, ""),
    ],
)
def test_a_training_is_called_so_that_nobody_else_hears_it(name: str, persona: Persona | None, why: str) -> None:
    everybody = [BOB, EVE, with_file(Persona(name="Ann"), "pinned@2")]
    said = heard_by_others(name, persona, everybody, {"bob": "baker"}, {"general"})
    assert said.startswith(why)
    assert bool(said) == bool(why)


def test_what_is_served_is_what_was_chosen_or_set_or_shipped(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model="mine@2")
    assert "answers for everybody" in obstacle(settings, "mine", "Rusty")
    assert "answers for everybody" in obstacle(settings, "starter", "Rusty")
    assert obstacle(settings, "rusty", "Rusty") == ""
    assert obstacle(settings, "mine", "") == ""


def test_a_voice_is_given_changed_and_taken_away_and_the_default_stays(registry: Registry) -> None:
    before = registry.stamp()
    assert give(registry, "Bob", "baker", by="ann").sequence == 1
    assert registry.stamp() != before
    give(registry, "Eve", "general")
    give(registry, "bob", "general")
    assert given_voices(registry) == {"eve": "general", "bob": "general"}
    assert withdraw(registry, "BOB").checkpoint == "general"
    assert given_voices(registry) == {"eve": "general"}
    assert registry.chosen() == "general"
    with pytest.raises(RegistryError, match="Bob was given no voice"):
        withdraw(registry, "Bob")


def test_nobody_is_given_what_is_not_there_not_current_or_was_refused(registry: Registry, tmp_path: Path) -> None:
    registry.add(bare_checkpoint(tmp_path / "bad", "bad"), "bad", Lineage(verdict=REFUSED))
    (registry.folder / "bad" / "current.json").write_text(
        json.dumps({"promotions": [{"version": registry.versions("bad")[0].version, "at": "2026-01-01T00:00:00Z"}]})
    )
    registry.add(bare_checkpoint(tmp_path / "new", "new"), "new")
    for name, error in (("none", RegistryError), ("new", RegistryError), ("bad", CheckpointRefused)):
        with pytest.raises(error):
            give(registry, "Bob", name)
    assert read_voices(registry).voices == ()


def test_a_rollback_goes_to_the_version_before_and_below_the_first_to_the_default(registry: Registry) -> None:
    give(registry, "Bob", "baker")
    registry.promote("baker@2")
    assert roll_back(registry, "baker").startswith("baker@0001-")
    assert given_voices(registry) == {"bob": "baker"}
    assert roll_back(registry, "baker") == "baker has no earlier version: Bob will speak with the default again"
    assert given_voices(registry) == {}
    with pytest.raises(NoEarlierVersion):
        roll_back(registry, "baker")


def test_no_rollback_returns_to_the_version_with_which_a_voice_was_taken_away(
    registry: Registry,
) -> None:
    give(registry, "Bob", "baker")
    roll_back(registry, "baker", by="ann")
    pointer = registry.pointer("baker")
    assert [(each.version[:4], each.by) for each in pointer.rolled_back] == [("0001", "ann")]
    assert registry.version("baker").sequence == 1, "who names it in a file goes on speaking with it"
    registry.promote("baker@2")
    give(registry, "Bob", "baker")
    assert roll_back(registry, "baker") == "baker has no earlier version: Bob will speak with the default again"
    assert given_voices(registry) == {}


def test_a_version_that_is_given_again_is_one_to_return_to(registry: Registry) -> None:
    give(registry, "Bob", "baker")
    roll_back(registry, "baker")
    give(registry, "Bob", "baker", by="ann")
    assert not registry.pointer("baker").is_withdrawn
    registry.promote("baker@2")
    assert roll_back(registry, "baker").startswith("baker@0001-")


def test_what_is_shipped_is_taken_away_too(registry: Registry) -> None:
    give(registry, "Bob", "starter")
    assert "Bob will speak with the default again" in roll_back(registry, "starter")
    assert registry.version("starter").is_shipped
    assert give(registry, "Bob", "starter").is_shipped


def test_voices_given_at_once_are_all_kept(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda number: give(registry, f"P{number}", "baker"), range(24)))
    assert len(given_voices(registry)) == 24


def test_a_damaged_file_is_named(registry: Registry) -> None:
    (registry.folder / VOICES_FILE).write_text("{")
    with pytest.raises(RegistryError, match=VOICES_FILE):
        given_voices(registry)


def test_people_are_told_that_a_corpus_follows_no_conversation(registry: Registry) -> None:
    version = registry.version("baker")
    assert caution(version) == ""
    (version.folder / "layout.json").write_text('{"name": "corpus", "version": 1}')
    assert "follows no conversation" in caution(version)
