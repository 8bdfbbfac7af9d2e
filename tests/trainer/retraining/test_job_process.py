"""A job's child process: its budgets, its limits, and that nobody else works in its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from personas.settings import Settings
from tests.helpers.worker_process import wait_until
from trainer.retraining.job_process import GIB, Budget, JobProcess, StillRunning, Usage, excess, forecast, last_words

BUDGET = Budget(memory=2 * GIB, seconds=3600, free_disk=GIB, num_threads=1)


def test_what_is_within_the_budget_is_let_be() -> None:
    assert excess(Usage(memory=2 * GIB, seconds=3600, free_disk=3 * GIB, needs_disk=2 * GIB), BUDGET) == ""


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        (Usage(memory=3 * GIB, free_disk=9 * GIB), "3.0 GB of memory, and may take 2.0 GB"),
        (Usage(seconds=5400, free_disk=9 * GIB), "1.5 hours, and may take 1.0"),
        (Usage(free_disk=3 * GIB, needs_disk=int(2.5 * GIB)), "3.0 GB of disk are free; it needs 2.5 GB more"),
    ],
)
def test_what_exceeds_the_budget_is_said_with_the_figure(usage: Usage, said: str) -> None:
    assert said in excess(usage, BUDGET)


def test_what_a_dry_run_expects_is_held_against_the_budget_and_what_it_does_not_know_is_let_be() -> None:
    expected = {"seconds": 5400.0, "memory_bytes": 3 * GIB, "disk_bytes": GIB}
    assert forecast(expected, 9 * GIB) == Usage(3 * GIB, 5400.0, 9 * GIB, GIB)
    assert "1.5 hours, and may take 1.0" in excess(forecast(expected | {"memory_bytes": 0}, 9 * GIB), BUDGET)
    assert excess(forecast({"seconds": None}, 9 * GIB), BUDGET) == ""


def test_settings_decide_the_budget_and_what_they_leave_open_is_a_share_of_what_is_free() -> None:
    given = Budget.of(Settings(training_memory_gb=3, training_hours=2, training_threads=5, training_niceness=7))
    assert (given.memory, given.seconds, given.num_threads, given.niceness) == (3 * GIB, 7200, 5, 7)
    assert Budget.of(Settings()).memory > 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits from outside need Linux")
def test_a_child_stands_back_and_may_not_ask_for_more_memory_than_twice_its_budget(tmp_path: Path) -> None:
    import resource

    before = os.getpriority(os.PRIO_PROCESS, 0)
    process = JobProcess(["personas", "list"], tmp_path, Budget(2 * GIB, 60, 0, 1, niceness=min(before + 3, 19)))
    try:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(before + 3, 19)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (4 * GIB, 4 * GIB)
        wait_until(process.memory, "the child has begun")
    finally:
        process.stop()


def test_only_one_child_works_in_a_folder_and_its_last_words_are_kept(tmp_path: Path) -> None:
    first = JobProcess(["personas", "show", "Nobody"], tmp_path, BUDGET)
    with pytest.raises(StillRunning):
        JobProcess(["personas", "list"], tmp_path, BUDGET)
    wait_until(lambda: first.status(0.1) is not None, "the child has ended")
    assert first.status(0) == 2
    assert "There is no persona called" in last_words(tmp_path)
    second = JobProcess(["--version"], tmp_path, BUDGET)
    wait_until(lambda: second.status(0.1) == 0, "the second child has ended")
