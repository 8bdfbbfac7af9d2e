"""People are kept informed of a job by one message, across restarts, and told the figures at its end once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bots.command import Caller
from bots.commands import run
from bots.delivery import Moved, NotEditable, TryLater, Undeliverable
from bots.job_card import bar, duration
from bots.services import Services
from bots.typed import read_command
from bots.watch import Watch
from tests.helpers.bare_checkpoint import bare_checkpoint
from tests.helpers.paper import HERE, THERE, Paper
from tests.helpers.retraining import REPORT, RESULT, brought_to_training
from worker.queue.connection import connect
from worker.queue.job import Job, Order, Progress, State
from worker.queue.jobs import Jobs
from worker.queue.loaded import RedisBoard, set_order


@pytest.fixture
def paper() -> Paper:
    made = Paper()
    made.max_length = 2000
    return made


@pytest.fixture
def jobs(redis_server: str) -> Jobs:
    return Jobs(connect(redis_server), worker="one", device="here")


def watch(services: Services, paper: Paper) -> Watch:
    return Watch(services, paper, "paper", every_s=0)


def ordered(jobs: Jobs) -> Job:
    job = jobs.submit(Order("ada", "datasets/ada.jsonl", "quick", conversation=str(HERE)))
    jobs.show("paper", job.id)
    return job


def training(jobs: Jobs) -> Job:
    """Bring a job as far as its training."""
    return brought_to_training(jobs, ordered(jobs))


def told(paper: Paper) -> list[Any]:
    return [text for _, text in paper.sent]


async def test_one_message_follows_a_job_and_an_adapter_that_was_restarted_goes_on_with_it(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    first = watch(services, paper)
    job = ordered(jobs)
    await first.look()
    await first.look()
    assert len(paper.sent) == 1
    assert "Reading the data" in told(paper)[0]
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED, report=REPORT)
    await first.look()
    assert "40 dialogues, 160 turns, 5,850 tokens" in paper.edited[-1][1]
    jobs.confirm(job.id, "paper:7")
    running = jobs.claim("train")
    assert running is not None
    jobs.beat(running, Progress(12, 5000, 10000, 2.345, 1500.0, 150.0))
    await watch(services, paper).look()
    message_id, text = paper.edited[-1]
    assert message_id == "id1"
    assert "████████░░░░░░░░ 50%" in text
    assert "step 12, loss 2.345, 1,500 tokens/s, 2 min left" in text
    assert len(paper.sent) == 1


async def test_the_dry_run_shows_what_cannot_be_read(services: Services, paper: Paper, jobs: Jobs) -> None:
    ordered(jobs)
    checked = jobs.claim("check")
    assert checked is not None
    rejected = {"rejected": 2, "lines": 42, "first_rejected": ["line 3: expected one JSON object a line", "line 9: …"]}
    jobs.move(checked, State.PROPOSED, report=REPORT | rejected)
    await watch(services, paper).look()
    [text] = told(paper)
    assert "2 of 42 lines cannot be read and are left out:\n· line 3: expected one JSON object a line\n· line 9" in text


async def test_where_trackers_show_the_curves_is_told_to_the_end(services: Services, paper: Paper, jobs: Jobs) -> None:
    job = training(jobs)
    watching = watch(services, paper)
    experiments = {"comet": "https://www.comet.com/ann/k", "tensorboard": ""}
    jobs.beat(job, Progress(12, 5000, 10000, 2.345, 1500.0, 150.0, experiments))
    await watching.look()
    jobs.move(job, State.FAILED, reason="out of memory")
    await watching.look()
    curves = f"\nCurves: https://www.comet.com/ann/k\nCurves: training/jobs/{job.id}/run/tensorboard"
    assert told(paper)[0].endswith(f"2 min left{curves}")
    assert paper.edited[-1][1].endswith(f"Failed: out of memory{curves}")


async def test_what_has_not_changed_is_not_edited(services: Services, paper: Paper, jobs: Jobs) -> None:
    training(jobs)
    watching = watch(services, paper)
    for _ in range(3):
        await watching.look()
    assert (len(paper.sent), len(paper.edited)) == (1, 0)


async def test_the_end_brings_picture_figures_and_replies_and_then_nothing_more(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    job = training(jobs)
    watching = watch(services, paper)
    await watching.look()
    jobs.put_curve(job, b"\x89PNG")
    jobs.move(job, State.REFUSED, result=RESULT, reason="new data 3, expected at most 2")
    for _ in range(2):
        await watching.look()
    assert "Refused: new data 3, expected at most 2." in paper.edited[-1][1]
    assert "never served" in paper.edited[-1][1]
    assert told(paper)[1:] == [
        "[4 bytes] The loss of ada.",
        "held-out data, bits per byte: 2.500 → 2.250\ngeneral set, bits per byte: 3.000 → 3.000\n\n"
        "“Hi!”\nbefore: Hello!\nafter: Hello!",
    ]
    assert jobs.shown("paper") == set()


async def test_who_ordered_a_model_hears_once_that_a_worker_could_not_load_it(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    job = training(jobs)
    jobs.move(job, State.JUDGING)  # it is promoted, and says so a moment later
    watching = watch(services, paper)
    await watching.look()
    before = len(paper.sent)
    board = RedisBoard(jobs.redis, "one:7")
    board.failed("eve", "nobody here ordered it.")
    board.failed("ada", "ada@0001-ab: model.safetensors is cut off.")
    for _ in range(2):
        await watching.look()
    assert told(paper)[before:] == [
        "one:7 could not load ada: ada@0001-ab: model.safetensors is cut off. What spoke before goes on."
    ]


async def test_an_adapter_that_was_away_tells_once_what_could_not_be_loaded_meanwhile(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    set_order(jobs.redis, "ada", HERE)
    board = RedisBoard(jobs.redis, "one:7")
    board.failed("ada", "before anybody watched")
    await watch(services, paper).look()
    before = len(paper.sent)
    reasons = [f"disk {number} is full" for number in range(7)]
    for reason in reasons:
        board.failed("ada", reason)
    for _ in range(2):
        await watch(services, paper).look()
    assert told(paper)[before:] == [
        f"one:7 could not load ada: {reason}. What spoke before goes on." for reason in reasons
    ]


async def test_where_a_group_has_another_address_a_failure_is_told_there(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    set_order(jobs.redis, "ada", HERE)
    watching = watch(services, paper)
    await watching.look()
    RedisBoard(jobs.redis, "one:7").failed("ada", "the disk is full")
    paper.failures = [Moved(THERE)]
    for _ in range(2):
        await watching.look()
    assert paper.sent == [(THERE, "one:7 could not load ada: the disk is full. What spoke before goes on.")]


@pytest.mark.parametrize(
    ("line", "reference"),
    [
        ("model use name=ada", ""),
        ("model use name=ada persona=Bob", "ada"),
        ("model promote version=ada@1", "ada"),
        ("model rollback ada", "ada"),
    ],
)
async def test_who_had_a_model_served_hears_that_a_worker_could_not_load_it(
    services: Services, paper: Paper, jobs: Jobs, tmp_path: Path, line: str, reference: str
) -> None:
    registry = services.workshop.registry
    for content in ("one", "two"):
        registry.promote(registry.add(bare_checkpoint(tmp_path / content, content), "ada").reference)
    registry.choose("ada")
    watching = watch(services, paper)
    await watching.look()
    admin = Caller(HERE, "7", "Ann")
    command, arguments = read_command("model", line.removeprefix("model "))
    assert command is not None
    await run(replace(services, admins=frozenset({admin.user})), command, admin, arguments)
    RedisBoard(jobs.redis, "one:7").failed(reference, "the disk is full")
    for _ in range(2):
        await watching.look()
    assert told(paper) == ["one:7 could not load ada: the disk is full. What spoke before goes on."]


async def test_a_message_that_is_gone_is_sent_anew_and_a_busy_platform_hears_of_it_later(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    job = training(jobs)
    watching = watch(services, paper)
    await watching.look()
    jobs.beat(job, Progress(1, 100, 1000, 2.0, 10.0, 90.0))
    paper.failures = [NotEditable("deleted")]
    await watching.look()
    assert len(paper.sent) == 2
    jobs.beat(job, Progress(2, 200, 1000, 2.0, 10.0, 80.0))
    paper.failures = [TryLater("flood control", 3)]
    await watching.look()
    assert paper.edited == []
    await watching.look()
    assert paper.edited[-1][0] == "id2"


async def test_progress_is_not_told_while_replies_need_the_room_and_a_new_state_is(
    services: Services, paper: Paper, jobs: Jobs
) -> None:
    job = training(jobs)
    watching = watch(services, paper)
    await watching.look()
    paper.has_room = False
    jobs.beat(job, Progress(1, 100, 1000, 2.0, 10.0, 90.0))
    await watching.look()
    assert paper.edited == []
    jobs.move(job, State.JUDGING)
    await watching.look()
    assert "Judging it" in paper.edited[-1][1]


async def test_where_nobody_can_be_told_the_job_goes_on_untold(services: Services, paper: Paper, jobs: Jobs) -> None:
    job = training(jobs)
    paper.failures = [Undeliverable("kicked")]
    await watch(services, paper).look()
    assert jobs.shown("paper") == set()
    assert not jobs.beat(job)


def test_bars_and_times_are_readable() -> None:
    assert [bar(share).count("█") for share in (-1, 0, 0.5, 1, 2)] == [0, 0, 8, 16, 16]
    assert [duration(seconds) for seconds in (9, 89, 90, 3600, 9000)] == ["9 s", "89 s", "2 min", "1.0 h", "2.5 h"]
