"""The results page says of every row what was measured, on how much, and by which command."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Kept, Model, Row, command, measure_row, page
from tests.helpers.tiny_model import tiny_checkpoint
from tests.trainer.test_ranking import dialogues
from trainer.measure import Measurements
from worker.loading import load_model

MODEL = Model("models/tiny", "(z) tiny")


def test_the_page_has_a_row_of_figures_and_a_command_for_each_measurement(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "tiny", max_new_tokens=3)), device="cpu", dtype="float32")
    figures = measure_row(Measurements(loaded), dialogues(), 2, 1, is_swapped=True)
    shown = page([Row(MODEL, "original", figures, command(MODEL, "original", 2, 1))], 2, 1)
    assert f"| (z) tiny | original | {figures['ppl_word']:.2f} | {figures['bpb']:.3f} |" in shown
    assert "--rank --replies --swap --limit 2 --rank-limit 1`" in shown
    assert f"sets {figures['rank']['candidates_sha256']})" in shown
    assert "| (z) tiny | greedy |" in shown
    assert "TransferTransfo (GPT-1) | valid, leaderboard | 17.51 | 82.1 | 19.09 |" in shown


def test_each_way_of_ranking_is_shown_behind_a_slash() -> None:
    shares = dict.fromkeys(("f1", "mean_words", "distinct_1"), 0.1)
    ranked = {
        "hits_at_1": 0.25,
        "mrr": 0.4,
        "pmi_hits_at_1": 0.75,
        "pmi_mrr": 0.8,
        "head_hits_at_1": 0.5,
        "head_mrr": 0.6,
    }
    figures = {"ppl_word": 20.0, "bpb": 1.0, "rank": ranked, "replies": {"greedy": shares, "sampled": shares}}
    cells = "20.00 | 1.000 | 25.0 / 75.0 / 50.0 | 0.400 / 0.800 / 0.600 | 10.0 | 10.0 | – | –"
    assert Row(MODEL, "none", figures, "").cells == cells


def test_a_checkpoint_that_is_not_shipped_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "tiny", max_new_tokens=3)), device="cpu", dtype="float32")
    figures = measure_row(Measurements(loaded), dialogues(), 2, 1, is_swapped=True)
    own = Model("runs/tiny/checkpoint", "(y) own", made_by="personabot train --config own.toml")
    shown = page([Row(MODEL, "original", figures, ""), Row(own, "original", figures, "")], 2, 1)
    assert "(y) own: the checkpoint is made by `personabot train --config own.toml`." in shown
    assert "(z) tiny: the checkpoint" not in shown


def test_what_is_known_of_a_checkpoint_is_not_measured_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def measure(name: str) -> dict[str, object]:
        asked.append(name)
        return {"ppl_word": 20.0}

    first = Kept(tmp_path / "runs" / "results.json")
    first.get("a1", "evaluate", lambda: measure("first"))
    again = Kept(tmp_path / "runs" / "results.json")
    assert again.get("a1", "evaluate", lambda: measure("again")) == {"ppl_word": 20.0}
    again.get("b2", "evaluate", lambda: measure("another checkpoint"))
    again.get("a1", "evaluate --limit 3", lambda: measure("another command"))
    assert asked == ["first", "another checkpoint", "another command"]
