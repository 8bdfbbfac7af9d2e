"""kill -9 of the training's process, of Redis and of the training worker: the run ends as an undisturbed one would."""

from __future__ import annotations

import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import tomli_w

from personas.checkpoint import read_checkpoint
from tests.helpers import worker_process
from tests.helpers.cli import personabot
from tests.helpers.retraining import start_training_worker, write_data
from worker.queue.connection import connect
from worker.queue.job import Job, Order, State
from worker.queue.jobs import Jobs
from worker.queue.server import EmbeddedServer

PATIENCE_S = 240.0
# Untrained models find no order in words, which is what the dry run would refuse.
LENIENT = {"PERSONABOT_TRAINING_DATA__MIN_ORDER": "1"}


wait_until = partial(worker_process.wait_until, patience_s=PATIENCE_S)


def trainer_of(worker: subprocess.Popen[bytes]) -> int:
    """Return the process id of the run itself."""
    [child] = [p for p in psutil.Process(worker.pid).children() if "train" in p.cmdline()]
    return child.pid


def state_of(jobs: Jobs, job_id: str) -> Job:
    job = jobs.get(job_id)
    assert job is not None
    assert job.state is not State.FAILED, job.reason
    return job


def change(path: Path, **values: float) -> None:
    """Write other values into a run's configuration."""
    config = tomllib.loads(path.read_text(encoding="utf-8"))
    assert config.keys() >= values.keys()
    path.write_text(tomli_w.dumps(config | values), encoding="utf-8")


@pytest.fixture
def own_server(home: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(home / "redis")
    server.start()
    yield server
    server.release()


def test_a_run_that_loses_its_process_its_redis_and_its_worker_ends_with_the_same_weights(
    own_server: EmbeddedServer, home: Path, tiny_model: Path
) -> None:
    write_data(home / "datasets" / "ada.jsonl")
    jobs = Jobs(connect(own_server.url))
    job_id = jobs.submit(Order("ada", "datasets/ada.jsonl", "quick", base=str(tiny_model))).id
    worker = start_training_worker(own_server.url, home, tiny_model, **LENIENT)
    try:
        wait_until(lambda: state_of(jobs, job_id).state is State.PROPOSED, "the data was read")
        folder = home / "training" / "jobs" / job_id
        change(folder / "config.toml", save_minutes=0.002, train_tokens=150_000)
        assert jobs.confirm(job_id, "discord:7")
        wait_until(lambda: state_of(jobs, job_id).progress.step > 20, "the run is under way")
        os.kill(trainer_of(worker), signal.SIGKILL)
        at = state_of(jobs, job_id).progress.step
        wait_until(lambda: state_of(jobs, job_id).progress.step > at + 10, "the run goes on")
        own_server.kill()
        own_server.start()
        at = state_of(jobs, job_id).progress.step
        wait_until(lambda: state_of(jobs, job_id).progress.step > at, "the run is told of again")
        assert state_of(jobs, job_id).state is State.TRAINING, "too quick to lose everything in turn"
        worker.kill()
        worker.wait()
        worker = start_training_worker(own_server.url, home, tiny_model, **LENIENT)
        wait_until(lambda: (folder / "run" / "checkpoint").is_dir(), "the run has ended")
        assert state_of(jobs, job_id).num_claims == 2
    finally:
        worker.terminate()
        worker.wait(60)
    undisturbed = home / "undisturbed"
    done = personabot(
        "train", "--config", folder / "config.toml", "--out", undisturbed, home=home, timeout_s=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    weights = [read_checkpoint(run / "checkpoint").digest for run in (folder / "run", undisturbed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("state", ["queued", "training"])
def test_a_job_can_be_cancelled_before_and_while_it_trains(
    redis_server: str, home: Path, tiny_model: Path, state: str
) -> None:
    jobs = Jobs(connect(redis_server))
    write_data(home / "datasets" / "ada.jsonl")
    job_id = jobs.submit(Order("ada", "datasets/ada.jsonl", "quick", base=str(tiny_model))).id
    worker = start_training_worker(redis_server, home, tiny_model, **LENIENT)
    try:
        wait_until(lambda: state_of(jobs, job_id).state is State.PROPOSED, "the data was read")
        config = home / "training" / "jobs" / job_id / "config.toml"
        change(config, train_tokens=1_500_000_000)
        if state == "queued":
            worker.terminate()
            worker.wait(60)
        jobs.confirm(job_id, "discord:7")
        if state == "training":
            wait_until(lambda: state_of(jobs, job_id).progress.step > 0, "the run is under way")
        jobs.cancel(job_id, "by Ann")
        wait_until(lambda: state_of(jobs, job_id).state is State.CANCELLED, "the job has ended")
        if state == "training":
            wait_until(lambda: not (config.parent / "data").exists(), "what nobody needs is cleared away")
            left = {path.name for path in (config.parent / "run").iterdir()}
            assert left == {"env.json", "log.jsonl", "tokenizer.json", "train.toml"}
        assert (config.parent / "run").exists() == (state == "training")
    finally:
        worker.terminate()
        worker.wait(60)
