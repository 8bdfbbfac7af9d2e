"""The trainer benchmark on a few dialogues: every contender trains, on the labels it claims."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from benchmarks.train import figures, flops, mean_context
from benchmarks.trainers import Bench, Round, replies
from personas.conversation import Role
from tests.helpers.layouts import persona_layout
from tests.trainer.test_train import config
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


def test_the_arithmetic_of_a_round_is_that_of_its_layers_its_attention_and_its_labels() -> None:
    shape = GPT2Config(n_layer=2, n_embd=4, vocab_size=10)
    layers = 2 * (4 * 4 * 4 + 2 * 4 * 16)  # attention's four projections, and the MLP's two
    assert flops(Round(0, 100, 1.0), shape, 0) == 6 * 100 * layers
    assert flops(Round(30, 0, 1.0), shape, 7) == 6 * 30 * 4 * 10
    assert flops(Round(0, 1, 0.5), shape, 7) == 2 * 6 * (layers + 2 * 2 * 4 * 7)


def test_a_token_attends_to_itself_and_what_stands_before_it() -> None:
    talk = next(iter(read_dialogues(DATA)))
    bench = Bench([talk], config(), persona_layout(), GPT2Config(), 1.0, torch.float32, torch.device("cpu"))
    examples = bench.layout.examples_of(talk.facts, talk.turns, max_tokens=bench.config.max_tokens)
    seen = [place + 1 for example in examples for place in range(len(example.ids))]
    assert mean_context(bench) == pytest.approx(sum(seen) / len(seen))


def test_figures_are_medians_and_cpu_seconds_count_the_share_of_the_cores() -> None:
    rounds = [(Round(100, 200, 2.0), 0.5), (Round(300, 600, 2.0), 1.5), (Round(900, 1800, 1.0), 1.0)]
    assert figures(rounds) == {
        "labels_per_s": 150.0, "labels_per_cpu_s": pytest.approx(100.0), "tokens_per_s": 300.0,
    }  # fmt: skip
