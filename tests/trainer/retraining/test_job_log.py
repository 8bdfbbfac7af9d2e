"""What is told of a run comes from its log, steps that were done again counted once."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.retraining.job_log import RunLog, draw_curve
from trainer.track import TRACKERS_FILE


def write(path: Path, *steps: int, speed: float = 100.0) -> None:
    with path.open("a", encoding="utf-8") as file:
        for step in steps:
            entry = {"step": step, "tokens": 100 * step, "loss": 5.0 / step, "tokens_per_s": speed}
            file.write(json.dumps(entry) + "\n")


def test_progress_is_that_of_the_newest_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", total_tokens=1000)
    log.read()
    assert log.progress().step == 0
    write(log.path, 1, 2, 3, 4)
    log.read()
    progress = log.progress()
    assert (progress.step, progress.tokens, progress.loss, progress.seconds_left) == (4, 400, 1.25, 6.0)
    assert log.seconds() == 4.0


def test_a_line_that_is_being_written_waits_and_steps_done_again_replace_what_followed(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", total_tokens=1000)
    write(log.path, 1, 2, 3, 4, 5)
    log.read()
    write(log.path, 3, speed=50.0)  # killed after step 5, saved at step 2
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "tok')
    log.read()
    assert sorted(log.steps) == [1, 2, 3]
    assert log.seconds() == 4.0
    assert log.progress().step == 3


def test_a_log_that_was_cut_to_where_its_run_goes_on_is_read_again(tmp_path: Path) -> None:
    log, cut = RunLog(tmp_path / "log.jsonl", total_tokens=1000), tmp_path / "cut.jsonl"
    write(log.path, 1, 2, 3, 4, 5)
    log.read()
    write(cut, 1, 2, *range(3, 9), speed=50.0)
    cut.replace(log.path)
    log.read()
    assert sorted(log.steps) == list(range(1, 9))
    assert log.seconds() == 16.0


def test_the_experiments_of_trackers_are_told_with_the_progress(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", total_tokens=1000)
    write(log.path, 1)
    known = {"comet": {"key": "k", "url": "https://www.comet.com/ann/k"}, "tensorboard": {"key": "t", "url": ""}}
    (tmp_path / TRACKERS_FILE).write_text(json.dumps(known))
    log.read()
    assert log.progress().experiments == {"comet": "https://www.comet.com/ann/k", "tensorboard": ""}


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", total_tokens=1000)
    write(log.path, *range(1, 30))
    log.read()
    assert draw_curve(log, "Ada").startswith(b"\x89PNG")
