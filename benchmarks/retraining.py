"""What people notice of a retraining: how long replies take before it, while it runs, and once its model took over.

    python -m benchmarks.retraining                    # 32 conversations, the shipped starter, small talk as data
    python -m benchmarks.retraining --data mine.jsonl --recipe quick --json

An embedded server, a chat worker and a training worker as an operator starts them. Everybody says something every
`--every` seconds whether or not others wait (an open loop): a reply's time counts from when its message was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.crowd import Crowd, Phase
from benchmarks.pipeline import environment, worker
from personas.logs import configure_logging
from personas.settings import Settings
from trainer.retraining.dry_run import write_dialogues
from trainer.retraining.general import general_set
from worker.queue.connection import connect
from worker.queue.job import Job, Order, State
from worker.queue.jobs import Jobs
from worker.queue.publish import Publisher
from worker.queue.server import running_server

SWAP_TIMEOUT_S = 300.0
POLL_S = 0.2
# The parts of a job, and in which states it may be found once a part has begun.
PARTS: tuple[tuple[str, *tuple[State, ...]], ...] = (
    ("training", State.TRAINING, State.JUDGING, State.PROMOTED),
    ("judging", State.JUDGING, State.PROMOTED),
    ("swap", State.PROMOTED),
)


class Watched:
    """One job and the moments at which its state changed."""

    def __init__(self, jobs: Jobs, order: Order) -> None:
        self._jobs = jobs
        self._id = jobs.submit(order).id
        self.changes = [("dry run", time.monotonic())]

    async def until(self, *states: State) -> Job:
        """Wait for one of the states; ends the program where the job ends in another way."""
        while True:
            job = await asyncio.to_thread(self._jobs.get, self._id)
            assert job is not None
            if job.state in states:
                return job
            if job.state.is_over:
                raise SystemExit(f"the job ended as {job.state}: {job.reason}")
            await asyncio.sleep(POLL_S)

    async def go_through(self) -> Job:
        """Confirm the job and follow it to its promotion, noting when each part began."""
        job = await self.until(State.PROPOSED)
        self._jobs.confirm(job.id, "benchmark")
        for name, *states in PARTS:
            job = await self.until(*states)
            self.changes.append((name, time.monotonic()))
        return job


async def measure(url: str, order: Order, crowd: Crowd, calm_s: float) -> dict[str, Any]:
    """Let the crowd talk through a retraining; return each phase's times, what was dropped, and the job's figures."""
    with Publisher(url) as publisher:
        crowd.arrive(publisher)
        begun = time.monotonic()
        await asyncio.sleep(calm_s)
        watched = Watched(Jobs(connect(url)), order)
        job = await watched.go_through()
        taken_over = await _taken_over(crowd, str(job.result["digest"]))
        await asyncio.sleep(calm_s)
        await crowd.leave()
    marks = [("before", begun), *watched.changes, ("after", taken_over), ("", taken_over + calm_s)]
    phases = [Phase(name, at, until) for (name, at), (_, until) in itertools.pairwise(marks)]
    return {
        "said": len(crowd.said),
        "dropped": sum(said.took_s is None for said in crowd.said),
        "phases": {phase.name: phase.summary(crowd.said) for phase in phases},
        "training": {"steps": job.progress.step, "tokens_per_s": job.progress.tokens_per_s},
        "versions": [str(job.report["base"]), str(job.result["version"])],
    }


async def _taken_over(crowd: Crowd, digest: str) -> float:
    """Wait for the first reply of the new model; return when that was."""
    async with asyncio.timeout(SWAP_TIMEOUT_S):
        while True:
            if any(said.model.endswith(digest) for said in crowd.said):
                return time.monotonic()
            await asyncio.sleep(POLL_S)


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


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    title = f"{result['conversations']} conversations, a message every {result['every_s']:g} s each"
    table = Table(title=f"{title}: {result['said']} said, {result['dropped']} dropped")
    for name in ("phase", "s", "said", "dropped", "p50 ms", "p95 ms", "slowest ms"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for name, phase in result["phases"].items():
        keys = ("seconds", "said", "dropped", "p50_ms", "p95_ms", "slowest_ms")
        table.add_row(name, *(str(phase.get(key, "–")) for key in keys))
    Console().print(table)


def main(
    model: Annotated[str, typer.Option(help="what answers, and is trained further")] = "starter",
    data: Annotated[Path | None, typer.Option(help="training data; else the shipped small talk")] = None,
    recipe: Annotated[str, typer.Option(help="quick, standard or voice")] = "standard",
    conversations: Annotated[int, typer.Option(min=1)] = 32,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two messages of a person")] = 8.0,
    calm: Annotated[float, typer.Option(min=1.0, help="seconds of talk before the job and after the swap")] = 60.0,
    device: str = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of the table")] = False,
) -> None:
    """Measure replies around a retraining; exit status 1 if a message was dropped."""
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
            crowd = Crowd(url, conversations, every, settings.reply_deadline_s)
            result = asyncio.run(measure(url, order, crowd, calm))
    result = {"model": model, "conversations": conversations, "every_s": every, "num_cpus": os.cpu_count(), **result}
    print(json.dumps(result)) if as_json else show(result)
    raise SystemExit(int(result["dropped"] > 0))


if __name__ == "__main__":
    typer.run(main)
