"""What administrators work with: the record of jobs, the registry, and the folders that data files are in.

Synchronous, like the store: handlers call it through a thread. No training happens here.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from personas.errors import PersonabotError
from personas.registry import Registry
from personas.settings import Settings
from worker.queue.app import make_app, send_look_task
from worker.queue.connection import connect
from worker.queue.job import UPLOADS, Job, Order
from worker.queue.jobs import Jobs
from worker.queue.publish import ATTEMPT_S

log = structlog.get_logger(__name__)

DATASETS: Final = "datasets"
ELSEWHERE: Final = f"Put it into {DATASETS}/ in the data folder, and name it with data=FILE."
# What the trainer's formats are in; `.gz` behind any of them.
SUFFIXES: Final = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md")
MAX_NAME_LENGTH: Final = 80
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]+")


class UnfitFile(PersonabotError):
    """A file that is not taken, and why."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """The way to jobs and checkpoints of one data folder."""

    jobs: Jobs
    registry: Registry
    data_dir: Path
    max_upload_bytes: int
    app: Celery

    @classmethod
    def open(cls, settings: Settings, url: str) -> Self:
        """Connect to the Redis at `url`."""
        return cls(
            Jobs(connect(url, timeout_s=ATTEMPT_S, num_retries=1)),
            Registry.of(settings),
            settings.data_dir,
            settings.max_upload_mb * 10**6,
            make_app(url),
        )

    def submit(self, order: Order, platform: str) -> Job:
        """Record an order, keep the platform's people informed of it, and call a training worker."""
        job = self.jobs.submit(order)
        self.jobs.show(platform, job.id)
        self.wake()
        return job

    def wake(self) -> None:
        """Tell a training worker that there is something to do; it looks by itself, too."""
        try:
            send_look_task(self.app)
        except (OperationalError, redis.RedisError, OSError) as error:
            log.warning("training worker not called, it will find out", error=repr(error))

    def datasets(self) -> list[str]:
        """Return the names of the data files that lie ready."""
        folder = self.data_dir / DATASETS
        return sorted(path.name for path in folder.glob("*") if path.is_file() and is_data_file(path.name))

    def upload_path(self, name: str, num_bytes: int) -> Path:
        """Return where to put a file of that name; raises `UnfitFile` for one that is too large or no data file."""
        if num_bytes > self.max_upload_bytes:
            raise UnfitFile(
                f"That file has {num_bytes / 1e6:.1f} MB; at most {self.max_upload_bytes / 1e6:.0f} MB are taken "
                f"(max_upload_mb). {ELSEWHERE}"
            )
        safe = safe_name(name)
        if not is_data_file(safe):
            raise UnfitFile(f"That is no data file: expected {', '.join(SUFFIXES)}, each also with .gz.")
        folder = self.data_dir / UPLOADS
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{time.time_ns() % 10**9:09}-{safe}"


def safe_name(name: str) -> str:
    """Return the last part of a file's name with nothing in it that means anything to a file system.

    >>> safe_name("../../etc/pass wd.jsonl")
    'pass_wd.jsonl'
    """
    last = re.split(r"[/\\\\]", name)[-1]
    return _ODD.sub("_", last).lstrip(".")[-MAX_NAME_LENGTH:] or "data"


def is_data_file(name: str) -> bool:
    """Say whether the name is that of a file the trainer may be able to read."""
    return name.casefold().removesuffix(".gz").endswith(SUFFIXES)
