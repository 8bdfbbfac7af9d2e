"""Administrators' commands at the terminal: whoever sits there may give them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from personabot.console import AdminConsole
from personabot.queue_partner import CONVERSATION
from personas.settings import Settings
from tests.helpers.retraining import RESULT, brought_to_training, write_data
from tests.helpers.worker_process import wait_until
from worker.queue.connection import connect
from worker.queue.job import Order, Progress, State
from worker.queue.jobs import Jobs
from worker.queue.loaded import RedisBoard, set_order


def test_a_job_is_ordered_with_a_file_of_this_machine_and_its_states_are_told(
    redis_server: str, tmp_path: Path
) -> None:
    source, told = write_data(tmp_path / "mine.jsonl"), []
    settings = Settings(data_dir=tmp_path / "home", redis_url=redis_server)
    jobs = Jobs(connect(redis_server))
    with AdminConsole(settings, redis_server, told.append) as console:
        assert "reading the data" in console(f"retrain start name=ada file={source}")
        [job] = jobs.open()
        assert (settings.data_dir / job.order.data).read_bytes() == source.read_bytes()
        wait_until(lambda: any("Reading the data" in text for text in told), "the console has looked")
        assert job.id in console("retrain list")
        assert f"/retrain cancel {job.id}" in console("retrain status")
        assert "Cancelled by the terminal" in console(f"retrain cancel {job.id}")
        wait_until(lambda: not jobs.shown("terminal"), "the end was told")
    ended = jobs.get(job.id)
    assert ended is not None
    assert ended.state is State.CANCELLED
    assert "Cancelled by the terminal" in told[-1]


def has_told(told: list[str], beginning: str) -> bool:
    return any(text.startswith(beginning) for text in told)


def test_a_training_is_told_of_every_ten_percent_and_at_its_end_where_the_picture_lies(
    redis_server: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=redis_server)
    jobs = Jobs(connect(redis_server), worker="one", device="here")
    told: list[str] = []
    job = jobs.submit(Order("ada", "datasets/ada.jsonl", "quick", conversation=str(CONVERSATION)))
    jobs.show("terminal", job.id)
    running = brought_to_training(jobs, job)
    with AdminConsole(settings, redis_server, told.append):
        wait_until(lambda: any("Loading" in text for text in told), "the training is told of")
        for tokens in (1500, 1700, 2100):
            jobs.beat(running, Progress(tokens // 100, tokens, 10000, 2.5, 100.0, 90.0))
            wait_until(partial(has_told, told, f"ada: {tokens // 1000}"), "a tenth is told of")
        assert told[1:] == [
            "ada: 15%, step 15, loss 2.500, 100 tokens/s, 2 min left",
            "ada: 21%, step 21, loss 2.500, 100 tokens/s, 2 min left",
        ]
        picture = tmp_path / "training" / "jobs" / job.id / "curve.png"
        picture.parent.mkdir(parents=True)
        picture.write_bytes(b"")
        set_order(jobs.redis, "ada", CONVERSATION)
        RedisBoard(jobs.redis, "one:7").failed("ada", "the disk is full")
        jobs.move(running, State.PROMOTED, result=RESULT)
        wait_until(lambda: len(told) >= 5, "the end is told of, and what came of it")
    ends = "\n".join(told[3:])
    assert f"The loss: {picture}" in ends
    assert "one:7 could not load ada: the disk is full. What spoke before goes on." in ends


def test_a_file_that_is_not_there_and_a_word_that_is_no_command_are_explained(
    redis_server: str, tmp_path: Path
) -> None:
    with AdminConsole(Settings(data_dir=tmp_path, redis_url=redis_server), redis_server, print) as console:
        assert "There is no file" in console(f"retrain start ada file={tmp_path}/none.jsonl")
        assert console("retrian") == "There is no command /retrian."
        assert "Discord's policy" in console("retrain help")
