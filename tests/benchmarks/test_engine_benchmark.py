"""The engine benchmark on a tiny model: that it measures the same work for all, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from benchmarks.engine import BASELINE, OURS, SHAPES, dtypes_here, paired_ratio, subject_for
from benchmarks.limits import matrices, weight_bytes
from benchmarks.llama_cpp import FORMATS, llama_cpp_player, write_gguf
from benchmarks.peers import play_ctranslate2, play_static_batches
from benchmarks.plot import draw
from benchmarks.workload import Run, Talks, Turn, conversations, figures, percentile
from tests.helpers.tiny_families import FAMILIES, tiny_gpt2
from tests.helpers.tiny_model import tiny_checkpoint

ROOT = Path(__file__).parent.parent.parent
ALLOWED = range(3, 300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def test_it_prints_one_json_object_with_both_engines(tiny: Path) -> None:
    command = [sys.executable, "benchmarks/engine.py", "--model", str(tiny), "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    engines = json.loads(done.stdout)["engines"]
    assert set(engines) == {BASELINE, *(f"{OURS} {dtype}" for dtype in dtypes_here("all")[:2])}
    for by_concurrency in engines.values():
        assert set(by_concurrency) == {"1", "16"}
        for own in by_concurrency.values():
            assert set(own) == {"tokens_per_s", "replies_per_s", "p50_s", "p95_s"}
            assert all(value > 0 for value in own.values())


def test_conversations_are_the_same_each_time_and_grow() -> None:
    talks = conversations(ALLOWED, window=256, number=3, num_turns=3)
    assert talks == conversations(ALLOWED, window=256, number=3, num_turns=3)
    for first, second, _ in talks:
        assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
        assert len(second.prompt_ids) + second.num_new_tokens <= 256


def test_a_conversation_sends_its_next_message_when_it_is_answered() -> None:
    turns = [Turn((1,), 2, 0), Turn((1, 2), 3, 0)]
    under_way = Talks([turns, turns[:1]])
    assert under_way.opening() == [(0, turns[0]), (1, turns[0])]
    assert under_way.answered(0, 2) == [(0, turns[1])]
    assert under_way.answered(1, 2) == []
    assert under_way.answered(0, 3) == []
    run = under_way.run()
    assert (run.num_tokens, len(run.latencies_s)) == (7, 3)


def test_static_batches_answer_every_turn(tiny: Path) -> None:
    subject = subject_for(str(tiny), None)
    talks = conversations(subject.allowed, window=subject.window, number=3, num_turns=2)
    run = play_static_batches(subject, 2)(talks)
    assert run.num_tokens == sum(turn.num_new_tokens for turns in talks for turn in turns)
    assert len(run.latencies_s) == 6


@pytest.mark.parametrize("kind", FORMATS)
def test_llama_cpp_generates_as_many_tokens_as_it_is_asked_for(tiny: Path, kind: str) -> None:
    pytest.importorskip("xllamacpp")
    subject = subject_for(str(tiny), None)
    talks = conversations(subject.allowed, window=subject.window, number=2, num_turns=2)
    with llama_cpp_player(subject, 2, kind=kind) as play:
        assert play(talks).num_tokens == sum(turn.num_new_tokens for turns in talks for turn in turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_written_for_llama_cpp_with_all_of_its_weights(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]().requires_grad_(False)
    write_gguf(model, tmp_path / "model.gguf", FORMATS["float32"])
    written = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert sum(int(tensor.n_elements) for tensor in written) >= sum(p.numel() for p in model.parameters())
    largest = max(float(abs(tensor.data).max()) for tensor in written)
    assert largest == max(float(p.abs().max()) for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_ctranslate2_generates_as_many_tokens_as_it_is_asked_for(tiny: Path, dtype: str) -> None:
    pytest.importorskip("ctranslate2")
    subject = subject_for(str(tiny), None)
    talks = conversations(subject.allowed, window=subject.window, number=3, num_turns=2)
    run = play_ctranslate2(subject, 2, dtype=dtype)(talks)
    assert run.num_tokens == sum(turn.num_new_tokens for turns in talks for turn in turns)


def test_the_matrices_are_those_that_a_row_meets() -> None:
    model = tiny_gpt2()
    assert weight_bytes(model, model.dtype) == 4 * (2 * 12 * 64 * 64 + 300 * 64)
    assert {width for _, width in (matrix.shape for matrix in matrices(model))} == {64, 256}


def test_the_shapes_are_those_of_gpt2() -> None:
    assert SHAPES["gpt2-medium"] == {"n_layer": 24, "n_embd": 1024, "n_head": 16}


def test_figures_are_medians_over_the_rounds() -> None:
    runs = [Run(2.0, (1.0, 2.0), 20), Run(4.0, (1.0, 4.0), 20), Run(1.0, (0.5, 1.0), 20)]
    own = figures(runs)
    assert (own.tokens_per_s, own.replies_per_s, own.p50_s, own.p95_s) == (10.0, 1.0, 1.0, 2.0)


def test_a_ratio_pairs_what_ran_in_the_same_round() -> None:
    result = {"spread": {OURS: {"1": [10.0, 40.0, 30.0]}, BASELINE: {"1": [1.0, 2.0, 10.0]}}}
    assert paired_ratio(result, OURS, "1") == 10.0


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([3.0], 0.95)) == (50.0, 95.0, 3.0)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    own = {"tokens_per_s": 2.0, "replies_per_s": 1.0, "p50_s": 0.5, "p95_s": 0.9}
    draw({"engines": {OURS: {"1": own, "16": own}}, "model": "m", "machine": "here"}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
