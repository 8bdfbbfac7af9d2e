"""The trainer benchmark on a few dialogues: every contender trains, on the labels it claims."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.train import figures
from benchmarks.trainers import Round, replies
from personas.conversation import Role
from tests.helpers.layouts import persona_layout
from trainer.formats import read_dialogues

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "trainer" / "data" / "personachat.jsonl"


def test_it_prints_one_json_object_with_every_trainers_speed(tmp_path: Path) -> None:
    data = tmp_path / "talks.jsonl"
    talks = ({"p1": [], "p2": ["i like tea."], "turns": [f"is it {n}, {k}?" for k in range(12)]} for n in range(10))
    data.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    flags = ["--data", str(data), "--layers", "1", "--width", "64", "--dtype", "fp32", "--quick", "--json"]
    flags += ["--train-tokens", "4200", "--seconds", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    contenders = json.loads(done.stdout)["contenders"]
    assert list(contenders) == ["personabot", "personabot, both losses", "transformers Trainer", "the ancestors' way"]
    assert all(value > 0 for each in contenders.values() for value in each.values())


def test_the_ancestors_way_has_a_sequence_for_every_reply_the_true_one_last() -> None:
    talk = next(iter(read_dialogues(DATA)))
    layout = persona_layout(max_tokens=512)
    first, *rest = replies([talk], layout, random.Random(1))
    spoken = [turn for turn in talk.turns if turn.role is Role.BOT]
    assert len(rest) + 1 == len(spoken)
    sequence, reply = first[-1]
    assert reply == layout.reply_ids(spoken[0].text)
    assert sequence[-len(reply) :] == reply
    assert len(first) == 2


def test_figures_are_medians_and_cpu_seconds_count_the_share_of_the_cores() -> None:
    rounds = [(Round(100, 200, 2.0), 0.5), (Round(300, 600, 2.0), 1.5), (Round(900, 1800, 1.0), 1.0)]
    assert figures(rounds) == {
        "labels_per_s": 150.0, "labels_per_cpu_s": pytest.approx(100.0), "tokens_per_s": 300.0,
    }  # fmt: skip
