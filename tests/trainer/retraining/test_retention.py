"""What nobody needs of a job that is over goes; what an open job or a version in the registry needs stays."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from personas.checkpoint import read_checkpoint
from personas.lineage import Lineage
from personas.registry import Registry
from personas.settings import Settings
from tests.helpers.bare_checkpoint import bare_checkpoint
from trainer.retraining.job_process import only_child
from trainer.retraining.retention import (
    BASE_IDLE_S,
    BASES,
    DIALOGUES,
    EVERYTHING,
    MAX_ENDED,
    WEIGHTS,
    JobFolder,
    clear,
    decide,
    hold_bases,
    unused_bases,
)
from trainer.retraining.starting_point import merged_base
from trainer.run_folder import RunFolder
from worker.queue.job import ENDS, FOLDERS, Job, Order, State
from worker.queue.job_scripts import KEPT_S
from worker.queue.jobs import Jobs

ORDER = Order("ada", "uploads/ada.jsonl", "quick")
RECORDS = ["config.toml", "output.log", "run/log.jsonl"]
BULK = ["data/train.jsonl", "run/checkpoint/model.safetensors", "run/last/state.pt"]
NOW = 2_000_000_000.0


def folder(name: str, state: State, *, at: float = 0.0, has_version: bool = False) -> JobFolder:
    return JobFolder(name, Job(name, ORDER, state, created_at=at), has_version)


@pytest.mark.parametrize("state", sorted(set(State) - ENDS))
def test_nothing_goes_of_a_job_that_is_not_over(state: State) -> None:
    others = [folder(f"over{index}", State.FAILED, at=9.0) for index in range(MAX_ENDED)]
    assert decide([folder("open", state), *others]) == {}


@pytest.mark.parametrize("state", sorted(ENDS - {State.FAILED}))
def test_weights_go_with_the_end_and_dialogues_unless_a_version_was_trained_on_them(state: State) -> None:
    assert decide([folder("one", state)]) == {"one": WEIGHTS + DIALOGUES}
    assert decide([folder("one", state, has_version=True)]) == {"one": WEIGHTS}


def test_a_failed_job_keeps_everything_for_a_look() -> None:
    assert decide([folder("one", State.FAILED)]) == {}


def test_of_the_oldest_jobs_only_what_a_version_was_trained_on_stays() -> None:
    recent = [folder(f"over{index}", State.FAILED, at=9.0 + index) for index in range(MAX_ENDED)]
    oldest = [
        folder("failed", State.FAILED, at=1.0),
        folder("promoted", State.PROMOTED, at=2.0, has_version=True),
        folder("training", State.TRAINING, at=0.0),
    ]
    assert decide([*oldest, *recent]) == {"failed": EVERYTHING, "promoted": WEIGHTS}


def test_a_folder_without_a_record_goes_when_records_do() -> None:
    folders = [
        JobFolder("lost", None, has_version=False, idle_s=KEPT_S - 1),
        JobFolder("old", None, has_version=False, idle_s=KEPT_S + 1),
        JobFolder("served", None, has_version=True, idle_s=KEPT_S + 1),
    ]
    assert decide(folders) == {"old": EVERYTHING, "served": WEIGHTS}


def test_weights_are_where_a_run_writes_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.path / "train.toml").write_text("")
    (run.path / "env.json").write_text("{}")

    def fail(_folder: Path) -> None:
        raise OSError("the disk is full")

    for name in ("best", "checkpoint"):
        with pytest.raises(OSError, match="full"):
            run.write_checkpoint(name, fail, {})
    run.save({"step": 1})
    written = {f"run/{path.name}" for path in run.path.iterdir() if path.is_dir()}
    assert written == {"run/.best", "run/.checkpoint", "run/last"}
    assert written < set(WEIGHTS)


def test_a_merged_base_goes_that_no_job_wants_and_nobody_took_for_a_day() -> None:
    idle_s = {"wanted": BASE_IDLE_S + 1, "unwanted": BASE_IDLE_S + 1, "just taken": BASE_IDLE_S - 1}
    assert unused_bases(idle_s, {"wanted", ""}) == ["unwanted"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def jobs(redis_client: redis.Redis) -> Jobs:
    return Jobs(redis_client, worker="one", device="here")


def moved(jobs: Jobs, settings: Settings, *states: State) -> Path:
    """Take a new job through its dry run to the last of `states`; return its folder, in which everything lies."""
    job = jobs.submit(ORDER)
    place = settings.data_dir / FOLDERS / job.id
    for name in (*RECORDS, *BULK):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    for state in states:
        claimed = jobs.claim("train" if state is not State.PROPOSED else "check")
        assert claimed is not None
        jobs.move(claimed, state)
        if state is State.PROPOSED and state is not states[-1]:
            jobs.confirm(job.id, "discord:7")
    return place


def left(place: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_the_dialogues_of_a_version_stay_until_it_is_pruned(jobs: Jobs, settings: Settings, tmp_path: Path) -> None:
    place = moved(jobs, settings, State.PROPOSED, State.PROMOTED)
    registry = Registry.of(settings)
    version = registry.add(bare_checkpoint(tmp_path / "trained"), "ada", Lineage(job=place.name))
    clear(settings, jobs, now=NOW)
    assert left(place) == sorted(["child.lock", "data/train.jsonl", *RECORDS])
    registry.prune("ada", keep=0)
    assert not registry.has(version.reference)
    clear(settings, jobs, now=NOW)
    assert left(place) == sorted(["child.lock", *RECORDS])


def test_what_open_jobs_need_stays(jobs: Jobs, settings: Settings) -> None:
    proposed = moved(jobs, settings, State.PROPOSED)
    judging = moved(jobs, settings, State.PROPOSED, State.JUDGING)
    clear(settings, jobs, now=NOW)
    for place in (proposed, judging):
        assert left(place) == sorted([*RECORDS, *BULK])


def test_no_prune_deletes_what_an_open_job_is_trained_from(jobs: Jobs, settings: Settings, tmp_path: Path) -> None:
    registry = Registry.of(settings)
    old, new = (registry.add(bare_checkpoint(tmp_path / name, name), "ada") for name in ("old", "new"))
    jobs.submit(replace(ORDER, base=old.reference))
    hold_bases(settings, jobs, "training@here:7")
    assert registry.prune("ada", keep=0) == [new]


def test_what_a_child_still_writes_to_goes_when_it_has_ended(jobs: Jobs, settings: Settings) -> None:
    place = moved(jobs, settings, State.PROPOSED, State.CANCELLED)
    with only_child(place):
        clear(settings, jobs, now=NOW)
        assert set(left(place)) == {"child.lock", *RECORDS, *BULK}
    clear(settings, jobs, now=NOW)
    assert set(left(place)) == {"child.lock", *RECORDS}


def test_a_proposal_that_lapsed_is_cleared_away(redis_client: redis.Redis, jobs: Jobs, settings: Settings) -> None:
    place = moved(jobs, settings, State.PROPOSED)
    clear(settings, Jobs(redis_client, proposal_s=0), now=NOW)
    assert set(left(place)) == {"child.lock", *RECORDS}
    ended = jobs.get(place.name)
    assert ended is not None
    assert ended.state is State.CANCELLED


def test_folders_beyond_the_number_go_the_oldest_first(jobs: Jobs, settings: Settings) -> None:
    places = [moved(jobs, settings, State.PROPOSED, State.FAILED) for _ in range(MAX_ENDED + 2)]
    clear(settings, jobs, now=NOW)
    assert [place.exists() for place in places] == [False] * 2 + [True] * MAX_ENDED


@pytest.mark.parametrize(("state", "stays"), [(State.JUDGING, True), (State.FAILED, True), (State.CANCELLED, False)])
def test_a_merged_base_stays_as_long_as_a_job_is_trained_from_it(
    jobs: Jobs, settings: Settings, state: State, stays: bool
) -> None:
    base = settings.data_dir / BASES / "1f2e3d4c5b6a"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_text("weights")
    place = moved(jobs, settings, State.PROPOSED, state)
    (place / "config.toml").write_text(f'base = "{base}"')
    clear(settings, jobs, now=time.time() + BASE_IDLE_S + 60)
    assert [path.name for path in base.parent.iterdir()] == ([base.name] if stays else [])


def test_a_merged_base_that_is_taken_again_counts_as_just_taken(jobs: Jobs, settings: Settings, tmp_path: Path) -> None:
    base = settings.data_dir / BASES / "1f2e3d4c5b6a"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    os.utime(base, (0, 0))
    merged_base(read_checkpoint(bare_checkpoint(tmp_path / "adapter")), base)
    clear(settings, jobs, now=time.time())
    assert base.is_dir()
    os.utime(base, (0, 0))
    clear(settings, jobs, now=time.time())
    assert not base.exists()
