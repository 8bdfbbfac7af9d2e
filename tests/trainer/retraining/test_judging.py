"""The end of a retraining: what passes speaks for whom it was ordered, and for nobody else."""

from __future__ import annotations

import json
from pathlib import Path

from personas.registry import Registry
from personas.settings import Settings
from personas.voices import given_voices
from tests.helpers.retraining import write_data
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.retraining.judging import judge
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


def trained_job(folder: Path) -> Path:
    """Write a job's folder as a training of one step leaves it."""
    checkpoint = tiny_checkpoint(folder / "run" / "checkpoint", seed=1)
    (checkpoint / "train.toml").write_text('name = "tiny"\n', encoding="utf-8")
    step = {"step": 1, "tokens": 100, "loss": 5.0, "tokens_per_s": 100.0}
    (folder / "run" / "log.jsonl").write_text(json.dumps(step) + "\n", encoding="utf-8")
    write_data(folder / "data" / "valid.jsonl", num_dialogues=2)
    return folder
