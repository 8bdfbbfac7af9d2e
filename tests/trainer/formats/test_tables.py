"""Tables: CSV of replies, scripts, and DialoGPT's TSV."""

from __future__ import annotations

from pathlib import Path

import pytest

from personas.conversation import Role
from trainer.formats import DataError, read_dialogues, sniff

SCRIPT = "name,line\nRick,Morty!\nMorty,what?\nRick,Come on.\nSummer,ugh\n"


def written(tmp_path: Path, text: str, name: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_table_of_replies_trains_the_response_and_reads_the_context(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'persona,context,response\n"I am Ada. | I keep bees.","hey\nhi\nany pets?",bees\n', "a.csv"
    )
    [dialogue] = read_dialogues(path)
    assert sniff(path) == "csv"
    assert dialogue.facts == ("I am Ada.", "I keep bees.")
    assert [(turn.role, turn.text) for turn in dialogue.turns] == [
        (Role.USER, "hey"), (Role.BOT, "hi"), (Role.USER, "any pets?"), (Role.BOT, "bees"),
    ]  # fmt: skip
    assert dialogue.untrained == {0, 1, 2}


def test_contexts_in_columns_stand_newest_first(tmp_path: Path) -> None:
    path = written(tmp_path, "response,context,context/0,context/1\nd,c,b,a\n", "a.csv")
    [dialogue] = read_dialogues(path)
    assert [turn.text for turn in dialogue.turns] == ["a", "b", "c", "d"]
    assert [turn.role for turn in dialogue.turns] == [Role.USER, Role.BOT] * 2


def test_a_script_is_told_from_the_side_of_the_named_speaker(tmp_path: Path) -> None:
    path = written(tmp_path, SCRIPT, "s.csv")
    [dialogue] = read_dialogues(path, speaker="rick")
    assert sniff(path) == "script"
    assert dialogue.name == "Rick"
    assert dialogue.facts == ("My name is Rick.",)
    assert [turn.role for turn in dialogue.turns] == [Role.BOT, Role.USER, Role.BOT, Role.USER]
    assert dialogue.turns[3].name == "Summer"


def test_a_script_of_several_needs_the_speaker_named(tmp_path: Path) -> None:
    path = written(tmp_path, SCRIPT, "s.csv")
    with pytest.raises(DataError, match=r"whose lines shall the bot learn\? Name one .*Rick \(2\), Morty \(1\)"):
        list(read_dialogues(path))
    with pytest.raises(DataError, match="nobody in it is called 'Jerry'"):
        list(read_dialogues(path, speaker="Jerry"))


def test_another_scene_begins_a_conversation(tmp_path: Path) -> None:
    path = written(tmp_path, "scene,name,line\n1,A,hi\n1,B,yo\n2,A,later\n2,B,bye\n", "s.csv")
    assert [[turn.text for turn in dialogue.turns] for dialogue in read_dialogues(path)] == [
        ["hi", "yo"],
        ["later", "bye"],
    ]


def test_turns_of_weight_zero_carry_no_loss(tmp_path: Path) -> None:
    path = written(tmp_path, "0.0 hey EOS 1.0 hi EOS 0.0 how are you ?\t1.0 fine\n", "d.tsv")
    [dialogue] = read_dialogues(path)
    assert sniff(path) == "dialogpt"
    assert [turn.text for turn in dialogue.turns] == ["hey", "hi", "how are you ?", "fine"]
    assert dialogue.turns[-1].role is Role.BOT
    assert dialogue.untrained == {0, 2}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "context,response\nx\n", "line 2: expected 2 fields"),
        ("a.csv", "context,response\n" + "x" * 200_000 + ",y\n", "line [12]: expected a CSV row"),
        ("a.csv", "colour,size\n1,2\n", "of no format known here"),
        ("d.tsv", "0.0 hey\t1.0 hi\n0.0 hey EOS hi\t1.0 x\n", "line 2: expected '0.0 first turn EOS"),
    ],
)
def test_a_damaged_table_is_refused_with_place_and_shape(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_dialogues(written(tmp_path, text, name)))
