"""What a retraining for one persona makes of its data, starts from, and may be called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from personas.catalogue import load_catalogue
from personas.conversation import Role
from personas.layout import load_layout
from personas.registry import Registry
from personas.settings import Settings
from personas.voices import give
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.formats import read_dialogues
from trainer.retraining.dry_run import count_tokens, dry_run
from trainer.retraining.starting_point import voice_of
from worker.queue.job import Order

SENTENCES = ("I keep the light on day {0}.", "The sea was loud and {0} gulls came.", "Nobody wrote to me in week {0}.")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    limits = {"min_order": 1, "max_surprise": 9}
    return Settings(data_dir=tmp_path, device="cpu", dtype="float32", training_data=limits)


def write_diary(settings: Settings, *, num_days: int) -> Order:
    """Write one long text without an empty line, so that only its length parts it, and order a voice of it."""
    folder = settings.data_dir / "datasets"
    folder.mkdir()
    days = (" ".join(sentence.format(day) for sentence in SENTENCES) for day in range(num_days))
    (folder / "diary.txt").write_text("\n".join(days), encoding="utf-8")
    return Order("keeper", "datasets/diary.txt", "voice", persona="Rusty")


def test_prose_is_told_in_passages_that_fit_and_by_the_persona(settings: Settings, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny", max_tokens=512)
    folder = tmp_path / "job"
    folder.mkdir()
    report = dry_run(folder, replace(write_diary(settings, num_days=60), base=str(model)), settings)
    assert report["refusal"] == ""
    assert report["passages"] == report["dialogues"] == report["turns"] > 10
    facts = load_catalogue(None).get("Rusty").facts
    dialogues = list(read_dialogues(folder / "data" / "train.jsonl"))
    assert all(dialogue.facts == facts for dialogue in dialogues)
    assert all([turn.role for turn in dialogue.turns] == [Role.BOT] for dialogue in dialogues)
    layout = load_layout(model)
    assert all(count_tokens([dialogue], layout) > 0 for dialogue in dialogues), "none is too long to be learnt"
    assert 0 < report["held_out"] < report["dialogues"]


def test_a_model_of_plain_text_is_given_it_whole_and_people_are_told_what_it_cannot(
    settings: Settings, tmp_path: Path
) -> None:
    model = corpus_checkpoint(tmp_path / "writer")
    folder = tmp_path / "job"
    folder.mkdir()
    report = dry_run(folder, replace(write_diary(settings, num_days=120), base=str(model)), settings)
    assert (report["refusal"], report["passages"]) == ("", 0)
    assert "follows no conversation" in report["caution"]


def test_a_voice_goes_on_from_the_one_that_its_persona_has(settings: Settings, tmp_path: Path) -> None:
    order = Order("keeper", "", "voice", persona="Rusty")
    assert voice_of(order, settings) == ""
    registry = Registry.of(settings)
    registry.promote(registry.add(tiny_checkpoint(tmp_path / "tiny"), "keeper").reference)
    give(registry, "Rusty", "keeper")
    assert voice_of(order, settings) == "keeper"
    assert voice_of(replace(order, persona=""), settings) == ""


def corpus_checkpoint(folder: Path) -> Path:
    """Write a tiny checkpoint of the layout `corpus`."""
    checkpoint = tiny_checkpoint(folder)
    layout = checkpoint / "layout.json"
    layout.write_text(layout.read_text(encoding="utf-8").replace('"persona"', '"corpus"'), encoding="utf-8")
    return checkpoint
