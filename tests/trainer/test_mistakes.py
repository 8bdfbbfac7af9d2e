"""Mistakes on the command line of `personabot train` end in one message, and leave nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import structlog
import torch

from personabot.cli import main
from tests.trainer.test_train import DATA

SMALL = ["--train-tokens", "300", "--dtype", "fp32", "--max-tokens", "256"]
MISTAKES = {
    "no such base": (["--base", "nosuch/model"], "nosuch/model: there is no such folder here"),
    "no such folder": (["--base", "{here}/nosuch", "--layout", "chat"], "nosuch: there is no such folder"),
    "an empty folder": (["--base", "{here}/empty"], "empty: no tokenizer that can be read"),
    "chat without a base": (["--layout", "chat"], "needs a base with a chat template"),
    "no such device": (["--device", "tpu"], "device: 'tpu' is none"),
    "a device that is not here": (["--device", "cuda"], "device: cuda was asked for"),
    "a configuration in Latin-1": (["--config", "{here}/latin.toml"], "cannot be read as UTF-8 text"),
    "a file for a folder": (["--out", "{here}/file"], "file can't be the run's folder"),
    "too few replies to choose from": (["--num-candidates", "4"], "needs dialogue with at least 50 replies"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_message_and_leaves_nothing(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if mistake == "a device that is not here" and torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.toml").write_bytes('name = "Zoë"\n'.encode("latin-1"))
    (tmp_path / "file").write_text("not a folder")
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    flags, expected = MISTAKES[mistake]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "run")]
    arguments = [str(DATA / "personachat.jsonl"), *SMALL, *out, *(flag.format(here=tmp_path) for flag in flags)]
    monkeypatch.setenv("PERSONABOT_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "argv", ["personabot", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    structlog.reset_defaults()
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert expected in said
    assert "Something went wrong" not in said
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before
