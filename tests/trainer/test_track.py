"""Trackers write what a run logs: real event files, real offline archives."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from trainer.track import TrackerError, Tracking, read_addresses, read_keys

STEP = {"step": 3, "tokens": 900, "loss": 2.5, "note": "not a figure"}
LOOK = {"step": 3, "valid": "valid.txt", "ppl_word": 20.5}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMET_API_KEY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(folder: Path, *names: str, step: int = 0) -> None:
    tracking = Tracking.start(names, folder, name="test", config={"seed": 1}, step=step)
    tracking.log(STEP)
    tracking.log(LOOK)
    tracking.end()


def test_tensorboard_event_files_hold_every_figure(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, "tensorboard")
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/tokens", "train/loss", "valid/valid.txt/ppl_word"}
    (loss,) = events.Scalars("train/loss")
    assert (loss.step, loss.value) == (3, 2.5)


def test_comet_without_a_key_writes_an_archive_to_upload_and_goes_on_in_the_same_experiment(tmp_path: Path) -> None:
    pytest.importorskip("comet_ml")
    run(tmp_path, "comet")
    key = read_keys(tmp_path)["comet"]
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = [json.loads(line) for line in file.read("messages.json").decode().splitlines()]
    names = [
        message["payload"].get("metric", {}).get("metricName")
        for message in messages
        if message["type"] == "metric_msg"
    ]
    assert {"train/loss", "valid/valid.txt/ppl_word"} <= set(names)
    run(tmp_path, "comet", step=3)
    assert read_keys(tmp_path)["comet"] == key


def test_wandb_without_a_key_writes_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run(tmp_path, "wandb")
    (record,) = tmp_path.glob(f"wandb/offline-run-*/run-{read_keys(tmp_path)['wandb']}.wandb")
    # The package's own process writes the records, maybe after `finish` has returned.
    assert record.read_bytes().startswith(b":W&B")
    assert read_addresses(tmp_path) == {"wandb": ""}


def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(TrackerError, match=r"comet is not installed.*personabot\[comet\]"):
        Tracking.start(["comet"], tmp_path, name="test", config={})


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match=r"no tracker 'mlflow'\. Known: tensorboard, comet, wandb"):
        Tracking.start(["mlflow"], tmp_path, name="test", config={})


def test_no_tracker_leaves_nothing_behind(tmp_path: Path) -> None:
    run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_training_run_sends_every_line_of_its_log(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tests.trainer.test_train import config
    from trainer.train import Run

    Run.prepare(config(train_tokens=1500, track=["tensorboard"]), tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, round(event.value, 4)) for event in events.Scalars("train/loss")]
    assert losses == [(line["step"], line["loss"]) for line in lines]
