"""The pipeline benchmark on a tiny model: that both ways generate the same, and that it prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.pipeline import Measured
from tests.helpers.tiny_model import tiny_checkpoint


def test_it_prints_one_json_object_with_the_overhead_of_the_queue(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny")
    options = ["--model", str(model), "--dtype", "float32", "--conversations", "2", "--people", "4"]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", *options, "--quick", "--json"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    [result] = printed["results"]
    assert result["num_same_text"] == result["num_replies"] == 2
    assert result["overhead"] > 0
    ways = printed["open_loop"]["ways"]
    assert list(ways) == ["alone", "one worker", "two workers"]
    assert all(way["windows"][0]["num_said"] > 0 for way in ways.values())


def test_percentiles_are_those_of_the_latencies() -> None:
    measured = Measured([number / 1000 for number in range(1, 101)], total_s=10.0)
    assert measured.summary() == {"replies_per_s": 10.0, "p50_ms": 50.5, "p95_ms": 96.0}
