"""The report shows what logs and metrics say, in one page that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.cli import personabot
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.card import write_metrics
from trainer.figures import smoothed
from trainer.report import ReportError, markdown, read_subject, table, write_report

pytest.importorskip("matplotlib")
EVALUATION = {"ppl_word": 20.954, "bpb": 1.017, "rank": {"hits_at_1": 0.5}, "replies": {"greedy": {"f1": 0.1875}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as a training leaves it: a log, a tracker's key, a checkpoint with figures."""
    folder = tmp_path / "mine"
    tiny_checkpoint(folder / "checkpoint")
    steps = [{"step": n, "tokens": 100 * n, "loss": 5 - n / 10, "tokens_per_s": 900.0} for n in range(1, 31)]
    looks = [{"step": n, "valid": "held.txt", "bpb": 2 - n / 100} for n in (10, 20, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*steps, *looks)))
    (folder / "trackers.json").write_text('{"comet": {"key": "abc123", "url": ""}}')
    (folder / "train.toml").write_text('name = "<mine>"\n')
    write_metrics(
        folder / "checkpoint", {"evaluation": {"held.txt": EVALUATION}, "probe": {"names": 0.9, "facts": 0.7}}
    )
    return folder


def test_the_table_names_checkpoint_data_figures_and_experiment(run: Path) -> None:
    subject = read_subject(run)
    header, row = table([subject])
    assert header[:3] == ["model", "checkpoint", "data"]
    assert dict(zip(header, row, strict=True)) | {"checkpoint": ""} == {
        "model": "mine", "checkpoint": "", "data": "held.txt", "word ppl": "20.95", "bits per byte": "1.017",
        "hits@1 of 20": "50.0%", "F1 greedy": "18.8%", "names": "90.0%", "facts": "70.0%", "experiment": "comet abc123",
    }  # fmt: skip
    assert len(row[1]) == 12


def test_figures_that_one_of_two_lacks_are_dashes(run: Path, tmp_path: Path) -> None:
    bare = tiny_checkpoint(tmp_path / "bare")
    lines = markdown(table([read_subject(run), read_subject(bare)])).splitlines()
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert lines[3].endswith("| – | – | – | – | – | – | – |  |")


def test_looks_at_held_out_data_are_placed_by_processed_tokens(run: Path) -> None:
    assert read_subject(run).looks() == {"held.txt": [(1000, 1.9), (2000, 1.8), (3000, 1.7)]}


def test_the_page_holds_its_pictures_and_escapes_what_it_shows(run: Path, tmp_path: Path) -> None:
    shown = write_report([run], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "report.md").read_text() == shown
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"loss.png", "validation.png", "speed.png"}
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;mine&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_a_folder_that_is_neither_run_nor_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"neither a run \(log.jsonl\) nor a checkpoint"):
        read_subject(tmp_path)


def test_a_broken_log_is_named_with_its_line(run: Path) -> None:
    (run / "log.jsonl").write_text('{"step": 1}\n{"step"\n')
    with pytest.raises(ReportError, match=r"log\.jsonl: line 2: expected one JSON object"):
        read_subject(run)


def test_smoothing_is_a_mean_of_neighbours() -> None:
    assert smoothed([4.0, 2.0, 0.0], share=2 / 3) == [3.0, 2.0, 1.0]


def test_the_command_prints_the_table_for_a_readme(run: Path, home: Path) -> None:
    done = personabot("report", run, "--out", home / "report", home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| model | checkpoint | data | word ppl |")
    assert (home / "report" / "report.html").is_file()
