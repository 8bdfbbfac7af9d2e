"""The training worker and one job: what its record says of a refusal or a failure, and what the log does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bots.job_card import card
from personas.settings import Settings
from trainer.retraining.jobs import Foreman, StepFailed
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
