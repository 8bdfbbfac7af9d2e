"""The training worker: takes jobs in order, has them checked, trained and judged in child processes, one at a time.

Owns the way of a job from its claim to its end, and what each way of failing means for it. What is trained is in
`recipes` and `retraining`; who may work on what is in `worker.queue.jobs`, what stays of a job in `retention`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import redis
import structlog

from personas.errors import PersonabotError
from personas.settings import Settings
from trainer.retraining.job_log import RunLog
from trainer.retraining.job_process import (
    Budget,
    JobProcess,
    OverBudget,
    StillRunning,
    Usage,
    excess,
    forecast,
    free_disk,
    last_words,
)
from trainer.retraining.place import device_id, place_id
from trainer.retraining.retention import clear, hold_bases
from trainer.retraining.uploads import forget
from worker.queue.connection import connect
from worker.queue.job import CURVE_FILE, FOLDERS, Job, State
from worker.queue.jobs import JobLost, Jobs
from worker.queue.loaded import set_order

log = structlog.get_logger(__name__)
T = TypeVar("T")

POLL_S: Final = 0.2
BEATS_PER_LEASE: Final = 6
CLEAR_EVERY_S: Final = 60.0
STEP_S: Final = 2 * 3600.0  # by the clock, for a dry run, a judgement or a comparison; less where a training has less
MAX_DEATHS: Final = 3  # of a child, or of the worker itself, before a job is given up
KILLED: Final = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)


class Cancelled(Exception):
    """Somebody wants the job to end."""


class Interrupted(Exception):
    """The worker is to stop; the job goes on later."""


class StepFailed(PersonabotError):
    """A child ended badly; the message is its last words."""


class Foreman:
    """Works on the jobs of one data folder and device, dry runs beside trainings. A context manager."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "training"
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        place = place_id(self._folder)
        self._jobs = Jobs(
            connect(url),
            worker=self._name,
            device=f"{place}:{device_id(settings.device)}",
            former_device=f"{place}:{settings.device}",
            lease_s=settings.lease_s,
        )
        self._beat_s = settings.lease_s / BEATS_PER_LEASE
        self._stopping = threading.Event()
        self._bells = {kind: threading.Event() for kind in ("check", "train", "clear")}
        self._threads = [
            threading.Thread(target=self._run, args=("check", self._check), name="checks"),
            threading.Thread(target=self._run, args=("train", self._train), name="trainings"),
            threading.Thread(target=self._clear, name="clearing"),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        log.info("ready for training jobs", folder=str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        """Let the children save and end; their jobs go on after the next start."""
        self._stopping.set()
        self.wake()
        for thread in self._threads:
            thread.join()

    def wake(self) -> None:
        """Look for jobs now, and for what they left."""
        for bell in self._bells.values():
            bell.set()

    def _run(self, kind: Literal["check", "train"], work: Callable[[Job], None]) -> None:
        while not self._stopping.is_set():
            self._bells[kind].clear()
            if job := self._claimed(kind):
                self._do(work, job)
            else:
                self._bells[kind].wait(self._beat_s)

    def _clear(self) -> None:
        """Hold what open jobs need, clear away what nobody does: at the start, after each job and now and then."""
        while not self._stopping.is_set():
            try:
                hold_bases(self._settings, self._jobs, f"training@{self._name}")
                clear(self._settings, self._jobs, now=time.time())
            except (redis.RedisError, PersonabotError, OSError, ValueError) as error:  # or a record that is no job
                log.warning("not cleared, trying again", error=repr(error))
            self._bells["clear"].wait(CLEAR_EVERY_S)
            self._bells["clear"].clear()

    def _claimed(self, kind: Literal["check", "train"]) -> Job | None:
        try:
            return self._jobs.claim(kind)
        except redis.RedisError as error:
            log.warning("no jobs to be had, trying again", error=repr(error))
            return None

    def _do(self, work: Callable[[Job], None], job: Job) -> None:
        """Work on a job until it ends, waits for a person, is interrupted, or is lost."""
        log.info("job", job=job.id, state=str(job.state), name=job.order.name, claim=job.num_claims)
        try:
            if failure := self._failure(work, job):
                state, values = failure
                self._move(job, state, **values)
            forget(self._settings.data_dir, job.order)
            self._bells["clear"].set()
        except Interrupted:
            log.info("job interrupted", job=job.id)
            with contextlib.suppress(redis.RedisError):
                self._jobs.release(job)
        except JobLost:
            log.warning("job lost to another worker", job=job.id)

    def _failure(self, work: Callable[[Job], None], job: Job) -> tuple[State, dict[str, str]] | None:
        """Do the work; return what the job comes to if it is not done: the one place where errors become that."""
        try:
            if job.num_claims > MAX_DEATHS:
                raise StepFailed(f"its worker died {job.num_claims - 1} times at it")
            work(job)
        except (Interrupted, JobLost):
            raise
        except Cancelled:
            return State.CANCELLED, {}
        except PersonabotError as error:
            return State.FAILED, {"reason": str(error), "kind": type(error).__name__}
        except Exception as error:
            log.exception("job failed", job=job.id)
            return State.FAILED, {"reason": f"something went wrong inside: {type(error).__name__}"}
        return None

    def _check(self, job: Job) -> None:
        """Do the dry run; nothing is trained before somebody confirms what it says."""
        folder = self._folder_of(job)
        (folder / "order.json").write_text(json.dumps(asdict(job.order)), encoding="utf-8")
        step = "compare" if job.order.other else "check"
        self._attend(job, ["retraining", step, str(folder)], RunLog(folder / "none"))
        if job.order.other:
            self._move(job, State.COMPARED, result=read_json(folder / "result.json"))
            return
        self._propose(job, read_json(folder / "report.json"))

    def _propose(self, job: Job, report: dict[str, Any]) -> None:
        """Ask for a confirmation, unless what the dry run found speaks against it, or it would cost too much.

        Where the limit is a share of the memory that is free and another training has its part of that now, memory is
        looked at when this one's turn comes.
        """
        expected = forecast(report, free_disk(self._folder))
        if not self._settings.training_memory_gb and self._through_outage(self._jobs.is_training):
            expected = replace(expected, memory=0)
        over = excess(expected, Budget.of(self._settings))
        if refusal := report.get("refusal") or over:
            kind = report.get("kind") or OverBudget.__name__
            self._move(job, State.REFUSED, kind=kind, report=report, reason=refusal)
        else:
            self._move(job, State.PROPOSED, report=report)

    def _train(self, job: Job) -> None:
        """Train where it was left off, judge, and say what came of it."""
        folder = self._folder_of(job)
        run = RunLog(folder / "run" / "log.jsonl", total_tokens=int(job.report.get("train_tokens", 0)))
        if not (folder / "run" / "checkpoint").is_dir():
            # What was saved once is written already, and a dead worker's child may be saving still, in memory that is
            # not free: what goes on is stopped by what it uses.
            has_begun = any((folder / "run").glob("*last"))
            if not has_begun and (over := excess(forecast(job.report, free_disk(folder)), Budget.of(self._settings))):
                raise OverBudget(over)
            self._attend(job, ["train", "--config", str(folder / "config.toml"), "--out", str(folder / "run")], run)
        self._move(job, State.JUDGING)
        self._attend(job, ["retraining", "judge", str(folder)], run)
        result = read_json(folder / "result.json")
        with contextlib.suppress(FileNotFoundError):
            picture = (folder / CURVE_FILE).read_bytes()
            self._through_outage(lambda: self._jobs.put_curve(job, picture))
        if result["is_promoted"] and (where := job.order.where):
            self._through_outage(lambda: set_order(self._jobs.redis, job.order.name, where))
        state = State.PROMOTED if result["is_promoted"] else State.REFUSED
        reason = result.get("reason", "")
        self._move(job, state, kind="gate" if reason else "", result=result, reason=reason)

    def _attend(self, job: Job, arguments: Sequence[str], run: RunLog) -> None:
        """Run a child to its end, however often it is killed; save and stop it when there is a reason to."""
        for _ in range(MAX_DEATHS):
            status = self._attended(job, arguments, run)
            if status == 0:
                return
            if status not in KILLED:
                break
            log.warning("child killed, starting again", job=job.id, status=status)
        raise StepFailed(last_words(self._folder_of(job)) or f"the process ended with status {status}")

    def _attended(self, job: Job, arguments: Sequence[str], run: RunLog) -> int:
        folder, budget = self._folder_of(job), Budget.of(self._settings)
        is_run = arguments[0] == "train"
        if not is_run:
            budget = replace(budget, seconds=min(budget.seconds, STEP_S))
        process = self._started(job, arguments, folder, budget)
        began, beaten = time.monotonic(), 0.0
        try:
            while (status := process.status(POLL_S)) is None:
                if self._stopping.is_set():
                    raise Interrupted
                run.read()
                if time.monotonic() - beaten > self._beat_s:
                    beaten = time.monotonic()
                    self._beat(job, run)
                seconds = run.seconds() if is_run else time.monotonic() - began
                usage = Usage(process.memory(), seconds, free_disk(folder))
                if over := excess(usage, budget):
                    raise OverBudget(over)
            return status
        finally:
            process.stop()
            run.read()

    def _started(self, job: Job, arguments: Sequence[str], folder: Path, budget: Budget) -> JobProcess:
        """Start a child, as soon as the child of a worker that died has saved and ended."""
        while True:
            try:
                return JobProcess(arguments, folder, budget)
            except StillRunning:
                self._beat(job, RunLog(folder / "none"))
                if self._stopping.wait(POLL_S):
                    raise Interrupted from None

    def _beat(self, job: Job, run: RunLog) -> None:
        try:
            if self._jobs.beat(job, run.progress() if run.steps else None):
                raise Cancelled
        except redis.RedisError as error:
            log.warning("no heartbeat, training on", job=job.id, error=repr(error))

    def _move(self, job: Job, state: State, *, kind: str = "", **values: Any) -> None:
        """Put a state on record. A reason may quote the data: the log gets the `kind` of reason, and how many lines."""
        report = values.get("report", {})
        counts = {name: report[name] for name in ("rejected", "lines") if report.get(name)}
        log.info("job", job=job.id, state=str(state), kind=kind, **counts)
        self._through_outage(lambda: self._jobs.move(job, state, **values))

    def _through_outage(self, step: Callable[[], T]) -> T:
        """Repeat a step of the record while Redis is away; a worker that is to stop gives up, the lease lapses then."""
        while True:
            try:
                return step()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                log.warning("redis is away, waiting", error=repr(error))
                if self._stopping.wait(1.0):
                    raise Interrupted from error

    def _folder_of(self, job: Job) -> Path:
        folder = self._settings.data_dir / FOLDERS / job.id
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def read_json(path: Path) -> dict[str, Any]:
    """Return what a child left for us."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
