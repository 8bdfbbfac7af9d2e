"""Attachments stay as long as somebody is going to read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.retraining.uploads import MAX_AGE_S, forget, forget_old
from worker.queue.job import Order

NOW = 2_000_000_000.0


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    ages = {"uploads/new.jsonl": 60.0, "uploads/old.jsonl": MAX_AGE_S + 60, "datasets/old.jsonl": 99 * MAX_AGE_S}
    for name, age_s in ages.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        os.utime(path, (NOW - age_s, NOW - age_s))
    return {name: tmp_path / name for name in ages}


def left(files: dict[str, Path]) -> list[str]:
    return [name for name, path in files.items() if path.exists()]


def test_an_attachment_that_was_read_goes_and_a_data_set_stays(tmp_path: Path, files: dict[str, Path]) -> None:
    for data in ("uploads/new.jsonl", "datasets/old.jsonl", "uploads/gone.jsonl", ""):
        forget(tmp_path, Order("ada", data, "quick"))
    assert left(files) == ["uploads/old.jsonl", "datasets/old.jsonl"]


def test_what_is_older_than_a_day_goes_unless_a_job_waits_for_it(tmp_path: Path, files: dict[str, Path]) -> None:
    forget_old(tmp_path, [Order("ada", "uploads/old.jsonl", "quick")], now=NOW)
    assert left(files) == list(files)
    forget_old(tmp_path, [], now=NOW)
    assert left(files) == ["uploads/new.jsonl", "datasets/old.jsonl"]
    forget_old(tmp_path / "elsewhere", [], now=NOW)
