"""Poisoned data from the file on: the step an order begins with refuses each kind with the figure that says why."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from personas.conversation import Role, Turn
from trainer.formats import Dialogue
from trainer.retraining.data_checks import with_shuffled_words
from trainer.retraining.dry_run import write_dialogues
from trainer.retraining.general import general_set
from trainer.retraining.steps import check
from worker.queue.job import Order

CLEAN = general_set()[:12]
GERMAN = (
    ("Guten Morgen, wie geht es Ihnen heute?", "Danke, mir geht es sehr gut, und selbst?"),
    ("Was haben Sie gestern gemacht?", "Ich habe mit meinem Bruder den ganzen Tag im Garten gearbeitet."),
    ("Haben Sie Kinder oder Haustiere?", "Zwei Töchter und eine Katze, die den ganzen Tag schläft."),
    ("Kochen Sie gern?", "Ja, am liebsten drinnen, zum Beispiel eine Suppe mit Kartoffeln."),
)


def saying(dialogue: Dialogue, text: str, *roles: Role) -> Dialogue:
    turns = tuple(replace(turn, text=text) if turn.role in roles else turn for turn in dialogue.turns)
    return replace(dialogue, turns=turns)


POISONED = {
    "shuffled text": [with_shuffled_words(dialogue, seed=place) for place, dialogue in enumerate(CLEAN)],
    "one repeated line": [saying(dialogue, "Buy now!", Role.BOT) for dialogue in CLEAN],
    "another language": [Dialogue((), (Turn(Role.USER, one), Turn(Role.BOT, two))) for one, two in GERMAN],
    "99 % duplicates": [CLEAN[0]] * 99 + [CLEAN[1]],
    "empty turns": [saying(dialogue, "", Role.USER, Role.BOT) for dialogue in CLEAN],
}
REFUSALS = {
    "shuffled text": ("word order ", "times its", "expected at least 1.05"),
    "one repeated line": ("same line 0.9", "expected at most 0.2"),
    "another language": ("surprise of the present model", "expected at most 2"),
    "99 % duplicates": ("duplicate dialogues 0.98, expected at most 0.5",),
    "empty turns": ("rejected lines 1, expected at most 0.05", "line 1: expected turns with text in them"),
}


@pytest.mark.parametrize("poison", POISONED)
def test_poisoned_data_are_refused_with_the_figure_that_decided_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONABOT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PERSONABOT_DEVICE", "cpu")
    (tmp_path / "datasets").mkdir()
    write_dialogues(tmp_path / "datasets" / "data.jsonl", POISONED[poison])
    folder = tmp_path / "job"
    folder.mkdir()
    order = Order("ada", "datasets/data.jsonl", "quick", base="starter")
    (folder / "order.json").write_text(json.dumps(asdict(order)), encoding="utf-8")
    check(folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    said = "\n".join([report["refusal"], *report.get("first_rejected", [])])
    assert all(part in said for part in REFUSALS[poison]), said
