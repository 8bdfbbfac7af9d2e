"""The end of a retraining: what passes speaks for whom it was ordered, and for nobody else."""

from __future__ import annotations

import json
from pathlib import Path

from personas.registry import Registry
from personas.settings import Settings
from personas.voices import give, given_voices
from tests.helpers.retraining import write_data
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.formats import read_dialogues
from trainer.measure import Measurements
from trainer.retraining.judging import judge
from trainer.retraining.starting_point import present_model
from worker.loading import load_model
from worker.queue.job import Order


def test_no_force_lets_a_voice_take_the_name_that_answers_everybody(tmp_path: Path, tiny_model: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu", dtype="float32")
    registry = Registry.of(settings)
    present = registry.promote(registry.add(tiny_model, "tiny").reference)
    registry.choose("tiny")  # after the dry run, as it were
    folder = trained_job(tmp_path / "training" / "jobs" / "12345678")
    order = Order("tiny", "mine.jsonl", "quick", persona="Rusty", by="ann", is_forced=True)
    result = judge(folder, order, {"base": present.reference, "data": "mine.jsonl", "sha256": "00"}, settings)
    assert not result["is_promoted"]
    assert "tiny is what answers for everybody: call the voice of Rusty something else" in result["reason"]
    assert registry.version("tiny") == present
    assert (len(registry.versions("tiny")), given_voices(registry)) == (2, {})


def test_what_is_served_is_what_has_to_be_beaten_and_not_the_base_of_the_training(
    tmp_path: Path, tiny_model: Path
) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu", dtype="float32")
    registry = Registry.of(settings)
    weaker = registry.promote(registry.add(tiny_checkpoint(tmp_path / "weaker", seed=2), "weaker").reference)
    served = registry.promote(registry.add(tiny_model, "ada").reference)
    registry.choose("ada")
    report = {"base": weaker.reference, "data": "mine.jsonl", "sha256": "00"}
    folder = trained_job(tmp_path / "training" / "jobs" / "12345678")
    order = Order("eve", "mine.jsonl", "quick", base="weaker", by="ann", is_forced=True)
    result = judge(folder, order, report, settings)
    assert result["present"] == served.reference
    assert result["before"]["bpb_new"] == bpb_of(tiny_model, folder)
    assert result["is_promoted"]
    # Interrupted after its promotion, it is not compared with itself.
    again = judge(folder, order, report, settings)
    assert (again["present"], again["before"]) == (served.reference, result["before"])
    verdict = registry.version("eve").lineage.verdict
    assert verdict is not None
    assert verdict.against == served.reference


def test_a_voice_is_judged_beside_the_one_it_replaces_and_a_first_one_beside_what_everybody_hears(
    tmp_path: Path, tiny_model: Path
) -> None:
    settings = Settings(data_dir=tmp_path, model=str(tiny_model))
    registry = Registry.of(settings)
    order = Order("baker", "mine.jsonl", "voice", persona="Rusty")
    first = present_model(order, settings)
    voice = registry.promote(registry.add(tiny_checkpoint(tmp_path / "one", seed=1), "baker").reference)
    give(registry, "Rusty", "baker")
    later = present_model(order, settings)
    assert first is not None
    assert later is not None
    assert (first.place, later.reference) == (tiny_model, voice.reference)
    nothing = Settings(data_dir=tmp_path / "new", model=str(tmp_path / "nowhere"))
    assert present_model(order, nothing) is None


def bpb_of(model: Path, job: Path) -> float:
    """Return what a model scores on the held-out dialogues of a job."""
    loaded = load_model(str(model), device="cpu", dtype="float32")
    return float(Measurements(loaded, seed=1).score(list(read_dialogues(job / "data" / "valid.jsonl")))["bpb"])


def trained_job(folder: Path) -> Path:
    """Write a job's folder as a training of one step leaves it."""
    checkpoint = tiny_checkpoint(folder / "run" / "checkpoint", seed=1)
    (checkpoint / "train.toml").write_text('name = "tiny"\n', encoding="utf-8")
    step = {"step": 1, "tokens": 100, "loss": 5.0, "tokens_per_s": 100.0}
    (folder / "run" / "log.jsonl").write_text(json.dumps(step) + "\n", encoding="utf-8")
    write_data(folder / "data" / "valid.jsonl", num_dialogues=2)
    return folder
