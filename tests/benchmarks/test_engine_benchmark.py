"""The engine benchmark on a tiny model: that it measures the same work for both, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine import BASELINE, OURS, Run, conversations, figures, percentile
from tests.helpers.tiny_model import tiny_checkpoint
from worker.loading import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def test_it_prints_one_json_object_with_both_engines(tiny: Path) -> None:
    command = [sys.executable, "benchmarks/engine.py", "--model", str(tiny), "--quick", "--json"]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["engines"]) == {OURS, BASELINE}
    for by_concurrency in result["engines"].values():
        assert set(by_concurrency) == {"1", "16"}
        assert all(value > 0 for own in by_concurrency.values() for value in own.values())


def test_conversations_are_the_same_each_time_and_grow(tiny: Path) -> None:
    loaded = load_model(str(tiny), device="cpu")
    talks = conversations(loaded, number=3, num_turns=3)
    assert talks == conversations(loaded, number=3, num_turns=3)
    for first, second, _ in talks:
        assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
        assert len(second.prompt_ids) + second.num_new_tokens <= loaded.window


def test_figures_are_medians_over_the_rounds() -> None:
    runs = [Run(2.0, (1.0, 2.0), 20), Run(4.0, (1.0, 4.0), 20), Run(1.0, (0.5, 1.0), 20)]
    own = figures(runs)
    assert (own.tokens_per_s, own.replies_per_s, own.p50_s, own.p95_s) == (10.0, 1.0, 1.0, 2.0)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([3.0], 0.95)) == (50.0, 95.0, 3.0)
