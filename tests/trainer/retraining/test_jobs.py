"""The training worker and one job: what its record says of a refusal or a failure, and what the log does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import torch
from structlog.testing import capture_logs

from bots.job_card import card
from personas.settings import Settings
from tests.helpers.worker_process import wait_until
from trainer.retraining.job_process import GIB, OverBudget, only_child
from trainer.retraining.jobs import Foreman, Interrupted, StepFailed
from trainer.retraining.place import device_id, place_id
from worker.queue.connection import connect
from worker.queue.job import Job, Order, State
from worker.queue.jobs import Jobs

SECRET = "her diary says the cake was poisoned"
REPORT = {
    "refusal": "rejected lines 0.3333, expected at most 0.05",
    "kind": "TooManyRejected",
    "rejected": 1,
    "lines": 3,
    "first_rejected": [f"line 4: expected 'Name: text', got {SECRET!r}"],
}


def refuse(foreman: Foreman, job: Job) -> None:
    foreman._move(job, State.REFUSED, kind=str(REPORT["kind"]), report=REPORT, reason=REPORT["refusal"])


def fail(_foreman: Foreman, _job: Job) -> None:
    raise StepFailed(f"expected text, got {SECRET!r}")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (refuse, {"state": "refused", "kind": "TooManyRejected", "rejected": 1, "lines": 3}),
        (fail, {"state": "failed", "kind": "StepFailed"}),
    ],
)
def test_what_an_end_quotes_of_the_data_is_for_whoever_sent_them_and_not_for_the_log(
    redis_server: str, home: Path, work: Callable[[Foreman, Job], None], said: dict[str, object]
) -> None:
    jobs = Jobs(connect(redis_server))
    submitted = jobs.submit(Order("ada", "datasets/ada.txt", "quick"))
    foreman = Foreman(Settings(data_dir=home, device="cpu"), redis_server)
    claimed = foreman._claimed("check")
    assert claimed is not None
    with capture_logs() as logged:
        foreman._do(lambda job: work(foreman, job), claimed)
    assert logged[-1] == {"event": "job", "log_level": "info", "job": submitted.id, **said}
    assert SECRET not in repr(logged)
    ended = jobs.get(submitted.id)
    assert ended is not None
    assert SECRET in card(ended)[0]


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ({"seconds": 7200.0}, "it takes 2.0 hours, and may take 1.0"),
        ({"memory_bytes": 3 * GIB}, "it takes 3.0 GB of memory, and may take 2.0 GB"),
        ({"seconds": None, "memory_bytes": GIB}, ""),
    ],
)
def test_what_would_exceed_a_budget_is_refused_before_anybody_confirms_it(
    redis_server: str, home: Path, expected: dict[str, float], reason: str
) -> None:
    jobs = Jobs(connect(redis_server))
    submitted = jobs.submit(Order("ada", "datasets/ada.txt", "quick"))
    settings = Settings(data_dir=home, device="cpu", training_hours=1, training_memory_gb=2, training_free_disk_gb=0)
    foreman = Foreman(settings, redis_server)
    claimed = foreman._claimed("check")
    assert claimed is not None
    foreman._propose(claimed, expected)
    asked = jobs.get(submitted.id)
    assert asked is not None
    assert (asked.state, asked.reason) == (State.REFUSED if reason else State.PROPOSED, reason)


@contextmanager
def hired(settings: Settings, url: str) -> Iterator[Foreman]:
    """A foreman that does what it is told, and whose connection does not outlive the test."""
    foreman = Foreman(settings, url)
    try:
        yield foreman
    finally:
        foreman._jobs.redis.close()


def begun(foreman: Foreman, jobs: Jobs, report: dict[str, float]) -> Job:
    """Take a job as far as a worker's claim to train it."""
    submitted = jobs.submit(Order("ada", "datasets/ada.txt", "quick"))
    checked = foreman._claimed("check")
    assert checked is not None
    foreman._move(checked, State.PROPOSED, report=report)
    assert jobs.confirm(submitted.id, "ann")
    claimed = foreman._claimed("train")
    assert claimed is not None
    return claimed


@pytest.mark.parametrize("saved", ["", "last", ".old-last"])
def test_a_forecast_refuses_what_has_not_begun_and_not_what_goes_on(
    redis_server: str, redis_client: redis.Redis, home: Path, saved: str
) -> None:
    with hired(Settings(data_dir=home, device="cpu", training_free_disk_gb=0), redis_server) as foreman:
        job = begun(foreman, Jobs(redis_client), {"disk_bytes": 1e18})
        folder = foreman._folder_of(job)
        if saved:
            (folder / "run" / saved).mkdir(parents=True)
        foreman._stopping.set()
        # The child of the worker before is saving still, which is waited for.
        with only_child(folder), pytest.raises(Interrupted if saved else OverBudget):
            foreman._train(job)


@pytest.mark.parametrize(
    ("memory_gb", "is_training", "state"),
    [(0, False, State.REFUSED), (0, True, State.PROPOSED), (2, True, State.REFUSED)],
)
def test_a_share_of_the_free_memory_refuses_nothing_while_another_training_has_its_part_of_it(
    redis_server: str, redis_client: redis.Redis, home: Path, memory_gb: float, is_training: bool, state: State
) -> None:
    jobs = Jobs(redis_client)
    settings = Settings(data_dir=home, device="cpu", training_memory_gb=memory_gb, training_free_disk_gb=0)
    with hired(settings, redis_server) as foreman:
        if is_training:
            begun(foreman, jobs, {})
        submitted = jobs.submit(Order("eve", "datasets/eve.txt", "quick"))
        claimed = foreman._claimed("check")
        assert claimed is not None
        foreman._propose(claimed, {"memory_bytes": 1_000_000 * GIB})
    asked = jobs.get(submitted.id)
    assert asked is not None
    assert asked.state is state


def test_one_device_has_one_name_and_so_one_training_at_a_time(redis_server: str, home: Path) -> None:
    found = str(torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    assert {device_id("auto"), device_id(found), device_id(found.removesuffix(":0"))} == {found}
    jobs = Jobs(connect(redis_server))
    foremen = [Foreman(Settings(data_dir=home, device=device), redis_server) for device in ("auto", found)]
    for foreman in foremen:
        jobs.submit(Order("ada", "datasets/ada.txt", "quick"))
        checked = foreman._claimed("check")
        assert checked is not None
        foreman._move(checked, State.PROPOSED)
        jobs.confirm(checked.id, "ann")
    assert [foreman._claimed("train") is not None for foreman in foremen] == [True, False]


def test_a_training_that_was_left_half_done_under_the_setting_as_the_devices_name_goes_on(
    redis_server: str, redis_client: redis.Redis, home: Path
) -> None:
    jobs = Jobs(redis_client, device=f"{place_id(home / 'training')}:auto")
    job_id = jobs.submit(Order("ada", "datasets/ada.txt", "quick")).id
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED)
    jobs.confirm(job_id, "ann")
    begun = jobs.claim("train")
    assert begun is not None
    jobs.release(begun)
    with hired(Settings(data_dir=home, device="auto"), redis_server) as foreman:
        taken = foreman._claimed("train")
    assert taken is not None
    assert taken.id == job_id


def test_a_record_that_cannot_be_read_does_not_end_the_clearing_for_good(
    redis_server: str, redis_client: redis.Redis, home: Path
) -> None:
    jobs = Jobs(redis_client, proposal_s=0)
    broken = jobs.submit(Order("ada", "datasets/ada.txt", "quick")).id
    redis_client.hset(f"job:{broken}", "order", "{")
    with hired(Settings(data_dir=home, device="cpu"), redis_server) as foreman:
        clearing = threading.Thread(target=foreman._clear)
        with capture_logs() as logged:
            clearing.start()
            wait_until(lambda: logged, "the record was looked at")
            assert clearing.is_alive()
            foreman._stopping.set()
            foreman.wake()
            clearing.join()
    assert {entry["event"] for entry in logged} == {"not cleared, trying again"}


def test_a_dry_run_that_takes_longer_than_a_training_may_is_ended_by_the_clock(redis_server: str, home: Path) -> None:
    jobs = Jobs(connect(redis_server))
    submitted = jobs.submit(Order("ada", "datasets/ada.txt", "quick"))
    foreman = Foreman(Settings(data_dir=home, device="cpu", training_hours=1e-6), redis_server)
    claimed = foreman._claimed("check")
    assert claimed is not None
    foreman._do(foreman._check, claimed)
    ended = jobs.get(submitted.id)
    assert ended is not None
    assert ended.state is State.FAILED
    assert "hours, and may take 0.0" in ended.reason
