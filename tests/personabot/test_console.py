"""Administrators' commands at the terminal: whoever sits there may give them."""

from __future__ import annotations

from pathlib import Path

from personabot.console import AdminConsole
from personas.settings import Settings
from tests.helpers.retraining import write_data
from tests.helpers.worker_process import wait_until
from worker.queue.connection import connect
from worker.queue.job import State
from worker.queue.jobs import Jobs


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


def test_a_file_that_is_not_there_and_a_word_that_is_no_command_are_explained(
    redis_server: str, tmp_path: Path
) -> None:
    with AdminConsole(Settings(data_dir=tmp_path, redis_url=redis_server), redis_server, print) as console:
        assert "There is no file" in console(f"retrain start ada file={tmp_path}/none.jsonl")
        assert console("retrian") == "There is no command /retrian."
        assert "Discord's policy" in console("retrain help")
