"""Two personas talk through one model: each hears itself as the bot, who repeats goes, and a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.self_chat import Opening, as_heard, converse, fault_of, main, next_id, openings
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings
from personas.registry import SHIPPED_FOLDER
from trainer.formats import DataError, Dialogue, read_dialogues
from worker.engine.engine import Engine
from worker.loading import load_model

DATA = Path(__file__).parents[1] / "trainer" / "data" / "personachat.jsonl"
ADA, BO = ("i am ada.",), ("i am bo.",)
USER, BOT = Role.USER, Role.BOT


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    """Run the command in this process."""
    monkeypatch.setattr("sys.argv", ["self_chat", *map(str, flags), "--dtype", "float32"])
    return main()


def test_who_spoke_first_in_the_data_begins_and_dialogues_without_two_personas_are_passed_over() -> None:
    dialogues = [
        Dialogue(BO, (Turn(USER, "hi, bo"), Turn(BOT, "hi")), ADA),
        Dialogue(BO, (Turn(USER, "hi, whoever you are"),)),
        Dialogue(BO, (Turn(BOT, "hi, ada"), Turn(USER, "hi")), ADA),
    ]
    assert list(openings(dialogues)) == [Opening(0, (ADA, BO), "hi, bo"), Opening(2, (BO, ADA), "hi, ada")]


def test_each_speaker_hears_itself_as_the_bot() -> None:
    texts = ["hi", "hello", "who are you?"]
    assert [turn.role for turn in as_heard(texts, 1)] == [USER, BOT, USER]
    assert as_heard(texts[:2], 0) == (Turn(BOT, "hi"), Turn(USER, "hello"))


@pytest.mark.parametrize(
    ("text", "has_stopped", "fault"),
    [
        ("i like to swim in the sea.", True, ""),
        ("me too!", True, ""),  # so short that anybody may say it twice
        ("", True, "empty"),
        ("i like to swim in the", False, "unfinished"),
        ("Oh, I like to walk my dogs.", True, "repeated"),  # the other's words
        ("no and no and no and no and no", True, "repeated"),  # within the turn
        ("i like to walk, and where do you live?", True, ""),  # 2 of 7 runs of three words
    ],
)
def test_a_turn_that_is_empty_unfinished_or_said_before_is_a_fault(text: str, has_stopped: bool, fault: str) -> None:
    assert fault_of(text, ["me too!", "i like to walk my dogs."], has_stopped=has_stopped) == fault


def test_a_dialogue_ends_at_its_first_fault(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model), device="cpu", dtype="float32")
    with Engine.for_model(loaded) as engine:
        settings = GenerationSettings(max_new_tokens=4)  # too few for the random model to stop
        talk = converse(loaded, engine, settings, Opening(0, (ADA, BO), "hello there"), num_turns=8, seed=1)
    assert (len(talk.texts), talk.fault) == (2, "unfinished")


def test_half_a_line_is_cut_off_and_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    assert next_id(path) == 0
    path.write_text('{"id": 4, "turns": []}\n{"id": 7, "tur', encoding="utf-8")
    assert next_id(path) == 5
    assert path.read_text(encoding="utf-8") == '{"id": 4, "turns": []}\n'
    path.write_text("dear diary\ntoday", encoding="utf-8")
    with pytest.raises(DataError, match=r"talks\.jsonl: its last line is no dialogue of self_chat"):
        next_id(path)
    assert path.read_text(encoding="utf-8") == "dear diary\ntoday"


def test_the_starter_talks_to_itself_and_a_stopped_run_ends_with_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talks.jsonl"
    flags = (DATA, "--model", SHIPPED_FOLDER / "starter", "--out", path, "--turns", 4, "--limit", 2)
    assert run(monkeypatch, *flags) == 0
    written = path.read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out) | {"digest": ""} == {
        "model": "starter", "digest": "", "dialogues": 2, "written": 2,
    }  # fmt: skip
    for real, talk in zip(read_dialogues(DATA), read_dialogues(path), strict=False):
        assert (talk.facts, talk.partner_facts, talk.turns[0]) == (real.facts, real.partner_facts, real.turns[0])
        assert len(talk.turns) == 4
        assert talk.turns[1:] != real.turns[1:4]
    path.write_text(written[:-10], encoding="utf-8")
    assert run(monkeypatch, *flags) == 0
    assert path.read_text(encoding="utf-8") == written


def test_data_without_two_personas_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "plain.txt"
    data.write_text("Ann: hello\nBo: hi\n", encoding="utf-8")
    assert run(monkeypatch, data, "--out", tmp_path / "talks.jsonl") == 1
    assert "expected dialogues with the personas of both speakers" in capsys.readouterr().err
    assert not (tmp_path / "talks.jsonl").exists()
