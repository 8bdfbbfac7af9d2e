"""A run's folder: it belongs to one run, and a kill at any moment leaves what was there before."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.cli import home, personabot
from tests.trainer.test_train import DATA, SHAPE, config
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.run_figures import run_figures
from trainer.run_folder import MAY_CHANGE, RunFolder, claim, differences, environment
from trainer.train import Run

__all__ = ["home"]


def test_a_folder_in_which_another_run_lies_is_refused_by_its_differing_keys(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Run.prepare(config(train_tokens=700), run).train()
    expected = rf"{run}: another run lies there, with other max_tokens, data\. Choose another --out, or remove"
    with pytest.raises(ConfigError, match=expected):
        Run.prepare(config(data=[{"path": DATA / "named.jsonl"}], max_tokens=128), run)
    length = {"train_tokens": 1500, "decay": 0.1, "save_minutes": 1.0}
    renamed = run.rename(tmp_path / "renamed")
    longer = Run.prepare(config(name="renamed", **length), renamed)
    longer.train()
    assert longer.place.num_tokens >= 1500


def test_a_rate_that_is_not_given_is_the_one_of_the_run_that_goes_on() -> None:
    old = config(learning_rate=2e-3)
    silent = TrainConfig.model_validate(old.model_dump(exclude={"learning_rate"}))
    assert differences(old, silent) == []
    assert differences(old, config(learning_rate=1e-3)) == ["learning_rate"]
    assert set(TrainConfig.model_fields) > MAY_CHANGE


def test_a_run_goes_on_with_the_rate_it_was_begun_with(tmp_path: Path) -> None:
    silent = TrainConfig.model_validate(config(train_tokens=600).model_dump(exclude={"learning_rate"}))
    assert Run.prepare(silent, tmp_path).config.learning_rate == 1e-3
    Run.prepare(config(train_tokens=600, learning_rate=3e-4), tmp_path).train()
    run = Run.prepare(silent.model_copy(update={"train_tokens": 1200}), tmp_path)
    run.train()
    assert run.config.learning_rate == load_config(tmp_path / "train.toml", {}).learning_rate == 3e-4


def test_a_run_goes_on_with_the_sides_it_was_begun_with(tmp_path: Path) -> None:
    talk = tmp_path / "talk.txt"
    talk.write_text("1 your persona: i fish.\n2 hi\thello\n")  # told from one side, where nothing is said
    run = tmp_path / "run"
    small = {"train_tokens": 64, "batch_tokens": 64, "micro_tokens": 64}
    begun = Run.prepare(config(data=[{"path": talk, "both_sides": True}], **small), run)
    begun.train()
    silent = config(data=[{"path": talk}], **small)
    gone_on = Run.prepare(silent, run)
    assert gone_on.stream.corpora[0].num_tellings == begun.stream.corpora[0].num_tellings == 2
    assert Run.prepare(silent, tmp_path / "new").stream.corpora[0].num_tellings == 1
    with pytest.raises(ConfigError, match="another run lies there, with other data"):
        Run.prepare(config(data=[{"path": talk, "both_sides": False}], **small), run)


def test_of_a_run_that_came_to_nothing_only_the_tokenizer_goes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record(config())
    (tmp_path / "tokenizer.json").write_text("{}")
    claim(tmp_path, config())
    assert (tmp_path / "tokenizer.json").exists()
    claim(tmp_path, config(max_tokens=128))
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_run_that_was_only_prepared_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    def prepared(path: Path, vocabulary: int) -> bytes:
        Run.prepare(config(scratch={**SHAPE, "vocabulary": vocabulary}), path)
        return (path / "tokenizer.json").read_bytes()

    assert prepared(tmp_path / "a", 400) != prepared(tmp_path / "a", 350) == prepared(tmp_path / "b", 350)


def test_a_folder_in_which_a_model_lies_is_no_place_for_a_run(tmp_path: Path) -> None:
    checkpoint = Run.prepare(config(train_tokens=600), tmp_path / "run").train()
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    with pytest.raises(ConfigError, match=f"out: a model lies in {checkpoint}, not a run. Choose another --out"):
        Run.prepare(config(base=str(checkpoint)), checkpoint)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(ConfigError, match="a model lies in"):
            claim(folder, config())


@pytest.mark.parametrize("name", ["last", "best", "checkpoint"])
def test_a_kill_between_any_two_changes_on_disk_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def write(value: int) -> None:
        if name == "last":
            folder.save({"value": value})
        else:
            folder.write_checkpoint(name, lambda scratch: write_small(scratch, value), figures)

    figures = run_figures(steps=1, num_tokens=1, num_labels=1, seconds=1.0, device=torch.device("cpu"))
    folder = RunFolder(tmp_path)
    folder.record(config())
    write(0)
    for allowed in range(6):
        before = value_in(tmp_path, name)
        with monkeypatch.context() as patch:
            die_after(patch, allowed)
            with contextlib.suppress(Killed):
                write(allowed + 1)
        claim(tmp_path, config())
        assert value_in(tmp_path, name) in {before, allowed + 1}
    write(99)
    assert value_in(tmp_path, name) == 99
    assert not list(tmp_path.glob(".old-*"))


def test_a_kill_while_the_configuration_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def write_half(path: Path, text: str, **options: Any) -> int:
        write(path, text[: len(text) // 2], **options)
        raise Killed

    folder = RunFolder(tmp_path)
    folder.record(config())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(Killed):
            folder.record(config(train_tokens=12_000))
    assert load_config(tmp_path / "train.toml", {}) == config()


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def die_after(patch: pytest.MonkeyPatch, allowed: int) -> None:
    """Let so many folders be renamed or removed, and kill at the next."""
    left = [allowed]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return change(*args, **options)

        return wrapper

    patch.setattr(Path, "rename", counted(Path.rename))
    patch.setattr(shutil, "rmtree", counted(shutil.rmtree))


def write_small(scratch: Path, value: int) -> None:
    (scratch / "value").write_text(str(value))


def value_in(path: Path, name: str) -> int:
    if name == "last":
        return int((RunFolder(path).load() or {})["value"])
    return int((path / name / "value").read_text())


def test_the_log_of_a_run_that_goes_on_ends_where_it_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    folder.cut_log(2)
    folder.log({"step": 3, "loss": 0.5})
    text = (tmp_path / "log.jsonl").read_text()
    assert text == '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "loss": 0.5}\n'


def test_files_of_the_same_name_are_told_apart_in_hashes_and_figures(tmp_path: Path) -> None:
    paths = [tmp_path / place / "talk.txt" for place in ("one", "two")]
    for path, text in zip(paths, ("1 hi\thello\n", "1 who\tme\n"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    settings = config(valid=[{"path": path, "both_sides": False} for path in paths])
    hashes = environment(settings)["data_sha256"]
    assert list(hashes) == ["personachat.jsonl", "one/talk.txt", "two/talk.txt"]
    assert hashes["one/talk.txt"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    run = Run.prepare(settings, tmp_path / "run")
    assert list(run.validation_figures()) == ["one/talk.txt", "two/talk.txt"]


def test_without_a_name_a_run_is_called_by_its_data(home: Path) -> None:
    (home / "my_talk.jsonl").write_bytes((DATA / "personachat.jsonl").read_bytes())
    sizes = ("--train-tokens", "64", "--batch-tokens", "64", "--micro-tokens", "64", "--dtype", "fp32")
    done = personabot("train", "my_talk.jsonl", *sizes, home=home)
    assert done.returncode == 0, done.stderr
    assert load_config(home / "runs" / "my_talk" / "train.toml", {}).name == "my_talk"
