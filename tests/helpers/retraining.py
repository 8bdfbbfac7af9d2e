"""A training worker for tests, small data, and a tiny base: a retraining of seconds; and what a job's record says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.cli import environment
from tests.helpers.tiny_model import TEXT
from worker.queue.job import Job, State
from worker.queue.jobs import Jobs

NUM_DIALOGUES = 40
# On a busy machine a training that stands back for everybody would not end within a test.
OURS = {"PERSONABOT_TRAINING_THREADS": "1", "PERSONABOT_TRAINING_NICENESS": "0"}

# What a dry run and a judgement say.
REPORT = {
    "data": "ada.jsonl",
    "licence": "CC0 1.0",
    "dialogues": 40,
    "turns": 160,
    "tokens": 5850,
    "held_out": 2,
    "left_out": 0,
    "base": "tiny@0001",
    "train_tokens": 11700,
    "seconds": None,
}
SIDE = {"bpb_new": 2.5, "bpb_general": 3.0, "replies": ["Hello!"]}
RESULT = {"version": "ada@0001-ab", "prompts": ["Hi!"], "before": SIDE, "after": {**SIDE, "bpb_new": 2.25}}

# An untrained model finds no order in words, forgets what it never knew, and says the same to everybody.
LENIENT = {
    "PERSONABOT_TRAINING_DATA__MIN_ORDER": "1",
    "PERSONABOT_GATE__MAX_FORGETTING": "5",
    "PERSONABOT_GATE__MAX_REPETITION": "1",
    "PERSONABOT_GATE__MAX_EMPTY": "1",
    "PERSONABOT_GATE__MAX_SAME_REPLY": "1",
    "PERSONABOT_GATE__MAX_SMOKE_FAILURES": "6",
}


def write_data(path: Path, *, num_dialogues: int = NUM_DIALOGUES) -> Path:
    """Write small dialogues, all different, that a tiny model can learn something from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(num_dialogues):
        said = [TEXT[(index + turn) % len(TEXT)] for turn in range(4)]
        turns = [{"s": 1 + turn % 2, "t": f"{text} number {index}"} for turn, text in enumerate(said)]
        facts = [f"My name is Ada {index}.", "I write programs."]
        lines.append(json.dumps({"p1": ["I ask."], "p2": facts, "turns": turns, "licence": "CC0 1.0"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def brought_to_training(jobs: Jobs, job: Job) -> Job:
    """Do what a worker and whoever ordered do until the job's training begins."""
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED, report=REPORT)
    jobs.confirm(job.id, "paper:7")
    claimed = jobs.claim("train")
    assert claimed is not None
    return claimed


def start_training_worker(url: str, home: Path, model: Path | None = None, **settings: str) -> subprocess.Popen[bytes]:
    """Start `personabot worker --queues training` as an operator does; without `model` for what the registry chose."""
    given = {"REDIS_URL": url, "PERSONABOT_DEVICE": "cpu", "PERSONABOT_LEASE_S": "4"}
    given |= {"PERSONABOT_MODEL": str(model)} if model else {}
    return subprocess.Popen(
        [sys.executable, "-m", "personabot", "worker", "--queues", "training"],
        env=environment(home, **{**given, **OURS, **settings}),
    )


@contextmanager
def training_worker(
    url: str, home: Path, model: Path | None = None, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a training worker until the block ends."""
    process = start_training_worker(url, home, model, **settings)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
