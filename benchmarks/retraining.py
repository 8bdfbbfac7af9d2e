"""What people notice of a retraining: how long replies take before it, while it runs, and once its model took over.

    python -m benchmarks.retraining                    # 32 conversations, the shipped starter, small talk as data
    python -m benchmarks.retraining --data mine.jsonl --recipe quick --json
    python -m benchmarks.retraining --through telegram # through the adapter, against the tests' Telegram or Discord

An embedded server, a chat worker and a training worker as an operator starts them. Everybody says something every
`--every` seconds whether or not others wait (an open loop): a reply's time counts from when its message was due.
The adapter and the platform it speaks to run in the benchmark's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.crowd import Crowd, Way, through_queue
from benchmarks.phases import Course, JobEnded, figures, reached, table
from benchmarks.pipeline import environment, worker
from personas.logs import configure_logging
from personas.settings import Settings
from trainer.retraining.dry_run import write_dialogues
from trainer.retraining.general import general_set
from worker.queue.connection import connect
from worker.queue.job import Order, State
from worker.queue.jobs import Jobs
from worker.queue.server import running_server


class Through(StrEnum):
    """What people's words pass on their way to the worker and back."""

    QUEUE = "queue"
    DISCORD = "discord"
    TELEGRAM = "telegram"

    def way(self, settings: Settings, url: str) -> AbstractAsyncContextManager[Way]:
        """Open the way; the platforms are the tests' own, which come with the extra `dev`."""
        match self:
            case Through.QUEUE:
                return through_queue(url, settings.reply_deadline_s)
            case Through.DISCORD:
                from tests.helpers.discord_rooms import rooms_on_discord

                return rooms_on_discord(settings, url)
            case Through.TELEGRAM:
                from tests.helpers.telegram_rooms import rooms_on_telegram

                return rooms_on_telegram(settings, url)


@dataclass(frozen=True)
class Talk:
    """Who talks, by which way, and for how many seconds before the job and after the swap."""

    through: Through
    num_people: int
    every_s: float
    calm_s: float


async def measure(url: str, settings: Settings, order: Order, talk: Talk) -> dict[str, Any]:
    """Let a crowd talk through a retraining; return how it was answered in each part, and the job's figures."""
    jobs, course = Jobs(connect(url)), Course()
    async with talk.through.way(settings, url) as way:
        crowd = Crowd(way, talk.num_people, talk.every_s)
        crowd.arrive()
        course.begin("before")
        await asyncio.sleep(talk.calm_s)
        job_id = jobs.submit(order).id
        course.begin("dry run")
        await reached(jobs, job_id, State.PROPOSED)
        jobs.confirm(job_id, order.by)
        job = await course.follow(jobs, job_id)
        await asyncio.sleep(talk.calm_s)
        course.begin("leaving")
        await crowd.leave(settings.reply_deadline_s)
    return figures(crowd, course) | {
        "training": {"steps": job.progress.step, "tokens_per_s": job.progress.tokens_per_s},
        "versions": [str(job.report["base"]), str(job.result["version"])],
    }


@contextlib.contextmanager
def training_worker(url: str, settings: Settings) -> Iterator[None]:
    """Run a training worker until the block ends."""
    command = [sys.executable, "-m", "personabot", "worker", "--queues", "training"]
    process = subprocess.Popen(command, env=environment(url, settings), stdout=sys.stderr.fileno())
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main(
    model: Annotated[str, typer.Option(help="what answers, and is trained further")] = "starter",
    data: Annotated[Path | None, typer.Option(help="training data; else the shipped small talk")] = None,
    recipe: Annotated[str, typer.Option(help="quick, standard or voice")] = "standard",
    through: Annotated[Through, typer.Option(help="what the words pass on their way")] = Through.QUEUE,
    conversations: Annotated[int, typer.Option(min=1)] = 32,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two messages of a person")] = 8.0,
    calm: Annotated[float, typer.Option(min=1.0, help="seconds of talk before the job and after the swap")] = 60.0,
    device: str = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of the table")] = False,
) -> None:
    """Measure replies around a retraining; exit status 1 if a message was dropped, or answered twice."""
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        settings = Settings.model_validate(
            {"data_dir": folder, "model": model, "device": device, "log_level": "warning"}
        )
        configure_logging(settings)
        name = data.name if data else "small_talk.jsonl"
        path = settings.data_dir / "datasets" / name
        path.parent.mkdir()
        shutil.copy(data, path) if data else write_dialogues(path, general_set())
        # Promoted whatever the gate says: the swap is to be measured.
        order = Order("benchmark", f"datasets/{name}", recipe, by="benchmark", is_forced=True)
        with running_server(settings) as url, worker(url, settings), training_worker(url, settings):
            try:
                result = asyncio.run(measure(url, settings, order, Talk(through, conversations, every, calm)))
            except JobEnded as error:
                raise SystemExit(str(error)) from error
    result = {"model": model, "through": through, "num_cpus": os.cpu_count(), **result}
    print(json.dumps(result)) if as_json else Console().print(table(result))
    raise SystemExit(int(result["dropped"] > 0 or result["surplus"] > 0))


if __name__ == "__main__":
    typer.run(main)
