"""Going on from a checkpoint with new text, with a guard against forgetting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from personas.conversation import Role
from personas.layout import load_layout
from tests.trainer.test_train import DATA, config, tiny_base
from trainer.cli import train
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.continuing import settled, with_replay
from trainer.data import Corpus
from trainer.train import Run

__all__ = ["tiny_base"]
TALK = {"path": DATA / "personachat.jsonl"}
PROSE = "The bees are asleep. Nobody knows where the queen is.\n\nShe left in the night! " * 30
OLD = {"data": [TALK], "valid": [{"path": DATA / "parlai.txt", "both_sides": False}]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows a little of PersonaChat."""
    return Run.prepare(config(train_tokens=20_000, **OLD), tmp_path_factory.mktemp("old")).train()


def asked(base: Path, **changes: object) -> TrainConfig:
    flags = {"base": str(base), "data": [{"path": DATA / "named.jsonl"}], "dtype": "fp32", **changes}
    return with_replay(load_config(None, settled(flags)))


def test_its_own_data_is_mixed_in_and_its_held_out_data_looked_at(checkpoint: Path) -> None:
    settings = asked(checkpoint, replay=0.25)
    shares = {source.path.name: source.share for source in settings.data}
    assert shares == {"named.jsonl": 0.75, "personachat.jsonl": 0.25}
    assert [source.path.name for source in settings.valid] == ["parlai.txt"]
    assert settings.valid_first
    assert (settings.layout, settings.max_tokens) == ("persona", 256)


def test_a_run_described_by_its_own_record_is_the_same_run(checkpoint: Path) -> None:
    settings = asked(checkpoint)
    assert with_replay(settings) == settings


def test_without_its_data_going_on_needs_a_word(checkpoint: Path, tmp_path: Path) -> None:
    text = (checkpoint / "train.toml").read_text().replace("personachat.jsonl", "gone.jsonl")
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"what it was trained on is not here: .*gone\.jsonl.*--replay 0"):
        asked(tmp_path)
    assert [source.path.name for source in asked(tmp_path, replay=0.0).data] == ["named.jsonl"]


def test_a_configuration_file_that_does_not_ask_for_it_is_left_alone(checkpoint: Path) -> None:
    settings = config(base=str(checkpoint))
    assert with_replay(settings) is settings


def test_new_prose_is_learnt_and_the_old_loss_told_before_and_after(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "more.txt"
    text.write_text(PROSE)
    length = {"train_tokens": 4000, "batch_tokens": 500, "micro_tokens": 500}
    train(data=[text], base=str(checkpoint), out=tmp_path / "run", dtype="fp32", **length)
    folder = tmp_path / "run" / "checkpoint"
    held_out = json.loads((folder / "metrics.json").read_text())["training"]["held_out"]
    assert set(held_out["before"]) == set(held_out["after"]) == {"parlai.txt"}
    assert "parlai.txt: bits per byte" in capsys.readouterr().err
    assert load_layout(folder).encode("hello") == load_layout(checkpoint).encode("hello")
    before, after = (load_file(place / "model.safetensors") for place in (checkpoint, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_prose_becomes_short_turns_for_a_layout_of_dialogue(tmp_path: Path) -> None:
    text = tmp_path / "more.txt"
    text.write_text(PROSE)
    [source] = config(data=[{"path": text}]).data
    dialogues = Corpus.read(source).in_passages().dialogues
    assert len(dialogues) > 10
    assert all(turn.role is Role.BOT and len(turn.text) < 400 for d in dialogues for turn in d.turns)
    assert Corpus.read(config(data=[TALK]).data[0]).in_passages().dialogues[0].turns


def test_an_adapter_is_gone_on_with_on_its_own_base(tmp_path: Path, tiny_base: Path) -> None:
    lora = {"base": str(tiny_base), "layout": "chat", "lora": {"rank": 3, "alpha": 6}}
    first = Run.prepare(config(train_tokens=900, **lora), tmp_path / "first").train()
    again = Run.prepare(config(base=str(first), layout="chat", train_tokens=900), tmp_path / "again")
    started = {name: value.clone() for name, value in again.model.trainable_state().items()}
    second = again.train()
    kept, moved = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 3
    assert json.loads((second / "checkpoint.json").read_text())["base"] == str(tiny_base)
    assert kept.keys() == moved.keys()
    assert any(not torch.equal(kept[name], moved[name]) for name in kept)
    assert any(value.abs().sum() > 0 for name, value in started.items() if "lora_B" in name)
