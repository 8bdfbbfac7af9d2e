"""`personabot evaluate` as its user runs it, and the probe on a model that knows nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from personas.catalogue import load_catalogue
from tests.helpers.tiny_model import tiny_checkpoint
from trainer.probe import probe
from trainer.probes import Probes, load_probes
from trainer.train import Run
from worker.engine.engine import Engine
from worker.loading import load_model
from worker.respond import Responder

DATA = Path(__file__).parent / "data"


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "personabot", "evaluate", *arguments], capture_output=True, text=True, check=False
    )


def test_evaluate_prints_one_json_object_and_keeps_the_figures_with_the_checkpoint(tmp_path: Path) -> None:
    from tests.trainer.test_train import config

    folder = Run.prepare(config(train_tokens=1500), tmp_path).train()
    done = evaluate(str(folder), str(DATA / "parlai.txt"), "--json", "--save", "--dtype", "float32")
    figures = json.loads(done.stdout)
    assert {"ppl_token", "ppl_word", "bpb", "num_words", "num_tokens"} <= figures.keys()
    assert json.loads((folder / "metrics.json").read_text())["evaluation"]["parlai.txt"]["bpb"] == figures["bpb"]
    assert "| `parlai.txt` |" in (folder / "README.md").read_text()


def test_evaluate_without_data_or_probe_says_what_to_name(tmp_path: Path) -> None:
    done = evaluate(str(tiny_checkpoint(tmp_path / "tiny")))
    assert done.returncode == 1
    assert "name a data file, or ask for --probe" in done.stderr


def test_the_probe_asks_every_question_once_and_repeats_itself_with_its_seed(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "tiny", max_new_tokens=4)), device="cpu", dtype="float32")
    shipped = load_probes().personas
    few = Probes(personas={name: shipped[name][:2] for name in list(shipped)[:2]})
    with Engine.for_model(loaded) as engine:
        responder = Responder(loaded, engine)
        first, second = (probe(responder, load_catalogue(None), few, seed=3) for _ in range(2))
    assert [answer["question"] for answer in first.answers] == [question for _, _, question in few.questions()]
    assert first.answers == second.answers
    assert first.metrics()["num_names"] == first.metrics()["num_facts"] == 6
