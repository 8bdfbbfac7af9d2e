"""The parts of a retraining, when each began, and how people were answered in each."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.crowd import Crowd, Said
from worker.queue.job import Job, State
from worker.queue.jobs import Jobs
from worker.queue.loaded import loaded_models

SWAP_TIMEOUT_S = 300.0
POLL_S = 0.2
# The parts of a job, and in which states it may be found once a part has begun.
PARTS: tuple[tuple[str, *tuple[State, ...]], ...] = (
    ("training", State.TRAINING, State.JUDGING, State.PROMOTED),
    ("judging and swap", State.JUDGING, State.PROMOTED),
)
COLUMNS = ("seconds", "said", "dropped", "p50_ms", "p95_ms", "slowest_ms")


class JobEnded(Exception):
    """The job came to another end than a promotion."""


@dataclass(frozen=True)
class Phase:
    """A stretch of time, by `time.monotonic`."""

    name: str
    begins: float
    ends: float

    def during(self, said: Sequence[Said]) -> list[Said]:
        """Return what was due in it."""
        return [each for each in said if self.begins <= each.due < self.ends]

    def summary(self, said: Sequence[Said]) -> dict[str, Any]:
        """Return how what was due in it was answered, times in milliseconds."""
        own = self.during(said)
        took = sorted(each.took_s * 1000 for each in own if each.took_s is not None)
        found = {"seconds": round(self.ends - self.begins, 1), "said": len(own), "dropped": len(own) - len(took)}
        if not took:
            return found
        return found | {
            "p50_ms": round(statistics.median(took)),
            "p95_ms": round(took[min(len(took) - 1, int(len(took) * 0.95))]),
            "slowest_ms": round(took[-1]),
        }


class Course:
    """How a retraining went on: what begins is noted with its time, and lasts until the next begins."""

    def __init__(self) -> None:
        self._began: list[tuple[str, float]] = []

    def begin(self, part: str) -> None:
        """Note that a part begins now."""
        self._began.append((part, time.monotonic()))

    async def follow(self, jobs: Jobs, job_id: str) -> Job:
        """Follow a confirmed job until every worker answers with its result, noting when each part began."""
        for part, *states in PARTS:
            await reached(jobs, job_id, *states)
            self.begin(part)
        job = await reached(jobs, job_id, State.PROMOTED)
        async with asyncio.timeout(SWAP_TIMEOUT_S):
            while await asyncio.to_thread(served, jobs) != {job.result["digest"]}:  # noqa: ASYNC110  # Redis, not an event
                await asyncio.sleep(POLL_S)
        self.begin("after")
        return job

    @property
    def phases(self) -> list[Phase]:
        """The parts that are over."""
        return [Phase(name, at, ends) for (name, at), (_, ends) in itertools.pairwise(self._began)]


async def reached(jobs: Jobs, job_id: str, *states: State) -> Job:
    """Wait for one of the states; raises JobEnded where the job ends in another way."""
    while True:
        job = await asyncio.to_thread(jobs.get, job_id)
        assert job is not None
        if job.state in states:
            return job
        if job.state.is_over:
            raise JobEnded(f"the job ended as {job.state}: {job.reason}")
        await asyncio.sleep(POLL_S)


def served(jobs: Jobs) -> set[str]:
    """Return the digests of what answers for everybody."""
    workers = loaded_models(jobs.redis).values()
    return {model.digest for models in workers for model in models if model.is_default}


def figures(crowd: Crowd, course: Course) -> dict[str, Any]:
    """Return how the crowd was answered: in all, and in each part."""
    return {
        "conversations": crowd.num_people,
        "every_s": crowd.every_s,
        "said": len(crowd.said),
        "dropped": crowd.num_dropped,
        "surplus": crowd.num_surplus,
        "phases": {phase.name: phase.summary(crowd.said) for phase in course.phases},
    }


def table(result: dict[str, Any]) -> Table:
    """Return `figures` as a table."""
    people = f"{result['conversations']} people, one message in {result['every_s']:g} s each"
    counts = f"{result['said']} said, {result['dropped']} dropped, {result['surplus']} answered twice"
    shown = Table(title=f"{people}\n{counts}")
    for name in ("phase", "s", "said", "dropped", "p50 ms", "p95 ms", "slowest ms"):
        shown.add_column(name, justify="left" if name == "phase" else "right")
    for name, phase in result["phases"].items():
        shown.add_row(name, *(str(phase.get(column, "–")) for column in COLUMNS))
    return shown
