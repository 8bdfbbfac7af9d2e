"""A run's life: killed and gone on with, in several processes, stopped early, out of numbers, told by epochs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from personas.checkpoint import read_checkpoint
from tests.trainer.test_train import DATA, config, tiny_base
from trainer.config import ConfigError
from trainer.optimizer import Optimizer
from trainer.step import take_gradient
from trainer.train import Run, TrainingError

__all__ = ["tiny_base"]
VALID = {"valid": [{"path": DATA / "parlai.txt", "both_sides": False}], "valid_dialogues": 1}
SMALL = """
name = "small"
train_tokens = 12000
batch_tokens = 500
micro_tokens = 300
max_tokens = 256
dtype = "fp32"
save_minutes = 0.0001
[scratch]
num_layers = 1
hidden_size = 16
num_heads = 2
vocabulary = 320
dropout = 0.1
"""


def lines(folder: Path) -> list[dict[str, float]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def command(folder: Path, *more: str, dropout: float = 0.1) -> list[str]:
    settings = folder.parent / "small.toml"
    settings.write_text(SMALL.replace("0.1", str(dropout)))
    files = ("train", str(DATA / "personachat.jsonl"), "--config", str(settings), "--out", str(folder))
    return [sys.executable, "-m", "personabot", *files, *more]


def run_to_end(arguments: list[str], **environment: str) -> None:
    done = subprocess.run(
        arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def kill_at(arguments: list[str], folder: Path, step: int) -> None:
    """Start a run and kill it when it has logged `step`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None and not any(entry.get("step", 0) >= step for entry in lines(folder)):
            time.sleep(0.01)  # asks how far it is
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL


def test_a_run_killed_twice_at_random_steps_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_end(command(whole))
    num_steps = int(lines(whole)[-1]["step"])
    first, second = sorted(random.SystemRandom().sample(range(2, num_steps - 3), 2))
    kill_at(command(killed), killed, first)
    kill_at(command(killed), killed, second)
    run_to_end(command(killed))
    expected, got = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(expected[name], got[name]) for name in expected), (first, second)
    assert [entry["step"] for entry in lines(killed)] == list(range(1, num_steps + 1)), (first, second)


def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    length = ("--train-tokens", "3000")
    run_to_end(command(alone, *length, dropout=0.0))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_to_end([sys.executable, *start, *command(together, *length, dropout=0.0)[1:]])
    expected, got = lines(alone), lines(together)
    assert len(expected) > 3
    assert [entry["step"] for entry in got] == [entry["step"] for entry in expected]
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in got] == pytest.approx([entry[name] for entry in expected], rel=1e-3)


def test_training_stops_when_held_out_bits_per_byte_no_longer_fall_and_keeps_the_best(tmp_path: Path) -> None:
    changes = {"learning_rate": 0.5, "warmup": 0.0, "train_tokens": 60_000, "valid_steps": 2, "patience": 2}
    run = Run.prepare(config(**changes, **VALID), tmp_path)
    folder = run.train()
    looks = [entry["bpb"] for entry in lines(tmp_path) if "bpb" in entry]
    assert run.place.num_tokens < 60_000
    assert min(looks) not in looks[-2:]
    assert run.place.best_bpb == min(looks)
    assert read_checkpoint(tmp_path / "best").digest == read_checkpoint(folder).digest


def test_the_first_look_comes_before_the_first_step_and_the_end_tells_both(tmp_path: Path) -> None:
    folder = Run.prepare(config(train_tokens=3000, valid_first=True, **VALID), tmp_path).train()
    assert lines(tmp_path)[0]["step"] == 0
    held_out = json.loads((folder / "metrics.json").read_text())["training"]["held_out"]
    assert held_out["after"]["parlai.txt"]["bpb"] < held_out["before"]["parlai.txt"]["bpb"]


def test_held_out_data_is_looked_at_once_more_when_the_run_is_over(tmp_path: Path) -> None:
    run = Run.prepare(config(train_tokens=1500, **VALID), tmp_path)
    run.train()
    assert [entry["step"] for entry in lines(tmp_path) if "bpb" in entry] == [run.place.step]
    assert (tmp_path / "best" / "checkpoint.json").is_file()
    Run.prepare(config(train_tokens=1500, **VALID), tmp_path).train()
    assert len([entry for entry in lines(tmp_path) if "bpb" in entry]) == 1


def test_patience_without_held_out_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"patience: needs held-out data .* --valid"):
        Run.prepare(config(patience=2), tmp_path / "run")


def test_speed_and_peak_memory_are_said_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Run.prepare(config(train_tokens=700), tmp_path).train()
    figures = json.loads((folder / "metrics.json").read_text())["training"]
    assert figures["peak_memory_mib"] > 50
    assert 0 < figures["labels_per_s"] < figures["tokens_per_s"]
    assert "processed tokens/s, peak memory" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run_with_what_was_saved_before(tmp_path: Path) -> None:
    run = Run.prepare(config(), tmp_path)
    with torch.no_grad():
        run.model.parameters()[0].fill_(float("nan"))
    expected = r"step 1: loss nan.*nothing was saved yet\. Lower the learning rate.*with another --out\."
    with pytest.raises(TrainingError, match=expected):
        run.train()
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradient_checkpointing_gives_the_same_gradient(tmp_path: Path, tiny_base: Path, kind: str) -> None:
    base = {"base": str(tiny_base), "layout": "chat", "lora": {"rank": 2, "alpha": 2}} if kind == "lora" else {}
    found = []
    for is_on in (False, True):
        run = Run.prepare(config(gradient_checkpointing=is_on, **base), tmp_path / str(is_on))
        run.model.train()
        optimizer = Optimizer(run.model.named_parameters().items(), run.config)
        batches = next(run._steps())
        found.append(take_gradient(run.model, optimizer, run.ranks, run.config, batches))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[1][1] > 0


def test_half_precision_scales_its_loss_and_learns(tmp_path: Path) -> None:
    Run.prepare(config(dtype="fp16", train_tokens=8000), tmp_path).train()
    losses = [entry["loss"] for entry in lines(tmp_path)]
    assert losses[-1] < losses[0]


def test_how_many_passes_a_run_is_stands_at_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.prepare(config(data=[{"path": DATA / "personachat.jsonl"}], train_tokens=3000), tmp_path)
    [corpus] = run.stream.corpora
    passed = [group for cursor in range(corpus.num_tellings) for group in run.stream.groups(corpus, cursor)]
    run.train()
    number = 3000 / sum(len(row.ids) for group in passed for row in group.rows)
    assert f"3,000 tokens: {number:.2g} passes over the data" in capsys.readouterr().err


def test_epochs_are_passes_over_the_data(tmp_path: Path) -> None:
    run = Run.prepare(config(epochs=2, data=[{"path": DATA / "personachat.jsonl"}]), tmp_path)
    [corpus] = run.stream.corpora
    passed = [group for cursor in range(corpus.num_tellings) for group in run.stream.groups(corpus, cursor)]
    assert run.config.train_tokens == 2 * sum(len(row.ids) for group in passed for row in group.rows)


def test_facts_are_shuffled_without_changing_anything_else(tmp_path: Path) -> None:
    source = {"path": DATA / "personachat.jsonl", "questions": 0.5, "spaced": 0.5}
    still, moved = (
        Run.prepare(config(data=[{**source, "shuffle_facts": is_on}]), tmp_path / str(is_on)).stream
        for is_on in (False, True)
    )
    before, after = (
        [row for cursor in range(6) for group in stream.groups(stream.corpora[0], cursor) for row in group.rows]
        for stream in (still, moved)
    )
    assert [row.texts for row in before] == [row.texts for row in after]
    assert [row.ids for row in before] != [row.ids for row in after]


def test_of_a_file_with_splits_each_purpose_reads_its_own(tmp_path: Path) -> None:
    entries = [
        {"personality": [name], "utterances": [{"history": ["hi there"], "candidates": ["no", "hello you"]}]}
        for name in ("trained on", "held out")
    ]
    path = tmp_path / "personachat.json"
    path.write_text(json.dumps({"train": entries[:1] * 60, "valid": entries[1:]}))
    run = Run.prepare(config(data=[{"path": path}], valid=[{"path": path}]), tmp_path / "run")
    assert {dialogue.facts for dialogue in run.stream.corpora[0].dialogues} == {("trained on",)}
    assert {dialogue.facts for dialogue in run.valid[0].dialogues} == {("held out",)}
