"""What jobs that are over leave in the data folder, and when it goes. `decide` is pure; `clear` looks, and deletes.

A job's folder has small things that say what happened (the order, both reports, the configuration, the output, the
run's log, what trackers wrote), the dialogues in `data/`, and in `run/` weights and the state of the training:

- a job that is not over needs everything: it goes on from there, whoever dies;
- the registry has its own copy of the weights, but a version's `train.toml` names the dialogues, and `personabot train
  --base` mixes them in again (`trainer.continuing`): they stay as long as the version does;
- a job that failed keeps everything, since its folder is all there is to look at, and to go on from by hand.

An adapter is merged into its base for training (`starting_point`); the merged one is large, and made again when wanted.
"""

from __future__ import annotations

import contextlib
import shutil
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from personas.leases import hold
from personas.registry import Registry
from personas.settings import Settings
from trainer.retraining.job_process import StillRunning, only_child
from trainer.retraining.uploads import forget_old
from worker.queue.job import FOLDERS, Job, State
from worker.queue.job_scripts import KEPT_S
from worker.queue.jobs import Jobs

log = structlog.get_logger(__name__)

MAX_ENDED: Final = 20  # folders of jobs that are over; twice as many jobs as `/retrain list` shows
DIALOGUES: Final = ("data",)
# All that `trainer.run_folder` writes in folders; those with a dot are what an interrupted step leaves.
WEIGHTS: Final = tuple(f"run/{mark}{name}" for name in ("last", "best", "checkpoint") for mark in ("", ".", ".old-"))
EVERYTHING: Final = (".",)
BASES: Final = "training/bases"  # where bases with an adapter merged in lie, by the adapter's digest
BASE_IDLE_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class JobFolder:
    """A job's folder as far as it matters to what goes.

    `job` is the record, None where Redis has none, and then `idle_s` is how many seconds ago it was written in last.
    `has_version`: the registry has a version that the job has made.
    """

    id: str
    job: Job | None
    has_version: bool
    idle_s: float = 0.0


def decide(folders: Iterable[JobFolder]) -> dict[str, tuple[str, ...]]:
    """Return what goes: by the job's id, paths below its folder."""
    every = list(folders)
    over = [(folder, folder.job) for folder in every if folder.job and folder.job.state.is_over]
    newest = sorted(over, key=lambda each: each[1].created_at, reverse=True)
    goes = {folder.id: _of_recent(folder, job) for folder, job in newest[:MAX_ENDED]}
    # A record goes 90 days after its job's end. One that is missing earlier is in another Redis, or was lost.
    old = [folder for folder, _ in newest[MAX_ENDED:]]
    old += [folder for folder in every if folder.job is None and folder.idle_s > KEPT_S]
    goes |= {folder.id: WEIGHTS if folder.has_version else EVERYTHING for folder in old}
    return {job_id: parts for job_id, parts in goes.items() if parts}


def unused_bases(idle_s: Mapping[str, float], wanted: Collection[str]) -> list[str]:
    """Return the merged bases that go: no job trains on them, and no dry run or judgement took them for a day.

    A dry run says only at its end which base it `wanted`, but takes it at its beginning.
    """
    return [name for name, seconds in idle_s.items() if name not in wanted and seconds > BASE_IDLE_S]


def _of_recent(folder: JobFolder, job: Job) -> tuple[str, ...]:
    if job.state is State.FAILED:
        return ()
    return WEIGHTS if folder.has_version else WEIGHTS + DIALOGUES


def clear(settings: Settings, jobs: Jobs, *, now: float) -> None:
    """End the proposals that nobody confirmed and delete what nobody needs at `now` (seconds since 1970).

    Raises what Redis, the registry and the file system raise where they cannot be read; the next time goes on with it.
    """
    for job_id in jobs.lapse():
        log.info("job", job=job_id, state=str(State.CANCELLED), kind="not confirmed")
    forget_old(settings.data_dir, [job.order for job in jobs.open()], now=now)
    place = settings.data_dir / FOLDERS
    goes = decide(_folders(place, jobs, Registry.of(settings), now=now))
    for job_id, parts in goes.items():
        _delete(place / job_id, parts)
    wanted = {_base_of(path) for path in place.glob("*") if path.name not in goes}
    bases = {path.name: now - path.stat().st_mtime for path in (settings.data_dir / BASES).glob("*")}
    for name in unused_bases(bases, wanted):
        _delete_base(settings.data_dir / BASES / name)


def hold_bases(settings: Settings, jobs: Jobs, holder: str) -> None:
    """Let no `prune` delete what open jobs train from or compare; to be repeated within `leases.LEASE_S`."""
    named = {name for job in jobs.open() for name in (job.report.get("base"), job.order.base, job.order.other) if name}
    hold(Registry.of(settings).folder, holder, named)


def _folders(place: Path, jobs: Jobs, registry: Registry, *, now: float) -> list[JobFolder]:
    """Look at the folders, then at the records, then at the registry: a job makes them in the opposite order."""
    there = [path for path in place.glob("*") if path.is_dir()]
    records = {path: jobs.get(path.name) for path in there}
    made = {version.lineage.job for name in registry.names() for version in registry.versions(name)}
    return [
        JobFolder(path.name, job, path.name in made, idle_s=0.0 if job else now - _touched_at(path))
        for path, job in records.items()
    ]


def _touched_at(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _base_of(folder: Path) -> str:
    """Return the name of the folder that a job is trained from, "" before its dry run has said so."""
    with contextlib.suppress(OSError, ValueError):  # not there, or being written
        return Path(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")).get("base", "")).name
    return ""


def _delete_base(path: Path) -> None:
    gone = path.with_name(f".{path.name.lstrip('.')}")  # as one that was never finished, should anything interrupt us
    try:
        path.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        log.warning("merged base not deleted", base=path.name, error=repr(error))
    else:
        log.info("merged base deleted", base=path.name)


def _delete(folder: Path, parts: Sequence[str]) -> None:
    goes = [folder / part for part in parts if (folder / part).exists()]
    if not goes:
        return
    try:
        with only_child(folder):  # a child that outlived its job's end may still be saving
            for path in goes:
                shutil.rmtree(path)
    except StillRunning:
        return
    except OSError as error:
        log.warning("job folder not cleared", job=folder.name, error=repr(error))
    else:
        log.info("job folder cleared", job=folder.name, parts=[part for part in parts if folder / part in goes])
