"""`personabot train`: what flags, `--set` and files on the command line make of a configuration."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_train import DATA, SHAPE
from trainer.cli import named, train
from trainer.config import ConfigError, Source, TrainConfig, load_config, setting
from trainer.formats import DataError

SIZES: dict[str, Any] = {"train_tokens": 64, "batch_tokens": 64, "micro_tokens": 64, "dtype": "fp32"}
RECIPE = f"""
seed = 5
[scratch]
{chr(10).join(f"{key} = {value}" for key, value in SHAPE.items())}
[[data]]
path = "nobody_has_this.jsonl"
[[valid]]
path = "nor_this.jsonl"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def trained(tmp_path: Path, **options: Any) -> TrainConfig:
    train(out=tmp_path / "run", **SIZES, **options)
    return load_config(tmp_path / "run" / "train.toml", {})


def test_any_key_can_be_set_and_wins_over_the_file(tmp_path: Path, recipe: Path) -> None:
    keys = ["seed=9", "optimizer=muon", "scratch.num_layers=1", "warmup = 0.5", "notes=a = b"]
    found = trained(tmp_path, files=[DATA / "personachat.jsonl"], config=recipe, set=keys)
    assert (found.seed, found.optimizer, found.warmup, found.notes) == (9, "muon", 0.5, "a = b")
    assert (found.scratch.num_layers, found.scratch.vocabulary) == (1, SHAPE["vocabulary"])


def test_a_text_that_is_set_may_hold_any_letter() -> None:
    assert setting("notes=from Zoë 😀") == {"notes": "from Zoë 😀"}


def test_data_in_the_folder_one_stands_in_names_its_run_by_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ada.v2"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert named(Path()) == "ada"
    assert named(Path("..")) == tmp_path.name
    (folder / "talk.jsonl").symlink_to(folder / "0f3a")
    assert named(Path("talk.jsonl")) == "talk"
    assert named(Path("../.hidden")) == ".hidden"


def test_an_unknown_key_or_a_bad_value_is_the_error_that_a_file_gives(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(ConfigError, match="flags: learningrate: Extra inputs") as caught:
        train(config=recipe, out=tmp_path / "run", set=["learningrate=1", "warmup=much"])
    assert "flags: warmup: Input should be a valid number" in str(caught.value)
    for text in ("seed", "=1", "a b=1"):
        with pytest.raises(ConfigError, match="expected key=value"):
            setting(text)


def test_files_on_the_command_line_replace_a_configurations_data_and_its_held_out_data(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = trained(tmp_path, files=[DATA / "personachat.jsonl"], config=recipe)
    assert [source.path.name for source in found.data] == ["personachat.jsonl"]
    assert found.valid == ()
    assert f"{recipe}: your files replace its data, and its held-out data is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "option"),
    [
        ("--both-sides", {"both_sides": True}),
        ("--one-side", {"both_sides": False}),
        ("--format", {"format": "csv"}),
        ("--speaker", {"speaker": "Rick"}),
        ("--shuffle-facts", {"shuffle_facts": True}),
    ],
)
def test_a_flag_about_files_is_refused_where_none_is_named(
    tmp_path: Path, recipe: Path, flag: str, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"{flag}: for files on the command line, and none .* in \[\[data\]\]"):
        train(config=recipe, out=tmp_path / "run", **option)
    expected = DataError if flag in {"--format", "--speaker"} else ConfigError
    with pytest.raises(expected, match="nobody_has_this" if expected is DataError else flag):
        train(config=recipe, out=tmp_path / "run", valid=[DATA / "personachat.jsonl"], **option)


def test_held_out_files_are_read_in_the_format_that_was_named(tmp_path: Path) -> None:
    talk = tmp_path / "held_out.txt"
    line = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    talk.write_text(json.dumps(line))
    found = trained(
        tmp_path, files=[talk], valid=[talk], format="messages", set=["scratch.hidden_size=16", "scratch.num_heads=2"]
    )
    assert [(source.format, source.both_sides) for source in found.valid] == [("messages", False)]


def test_every_key_of_a_configuration_stands_on_the_training_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    _, _, table = page.partition("## The configuration file")
    said = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", table.partition("\n## ")[0]))))
    assert {*TrainConfig.model_fields, *Source.model_fields, "fp16", "fp32"} <= said
