"""The data readers, on excerpts of the real files and on damaged ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from personas.conversation import Role
from trainer.formats import PARSERS, DataError, read_dialogues, sniff

DATA = Path(__file__).parent / "data"
FILES = {
    "personachat.jsonl": ("personachat", 3),
    "named.jsonl": ("named", 1),
    "spc.jsonl": ("spc", 2),
    "spc.csv": ("spc-csv", 1),
    "parlai.txt": ("parlai", 2),
    "parlai_candidates.txt": ("parlai", 1),
    "chitchat.json": ("chitchat", 2),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_recognised_and_read(name: str) -> None:
    format, num_dialogues = FILES[name]
    dialogues = list(read_dialogues(DATA / name))
    assert sniff(DATA / name) == format
    assert len(dialogues) == num_dialogues
    assert all(any(turn.role is Role.BOT for turn in dialogue.turns) for dialogue in dialogues)


def test_a_gzipped_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    packed = tmp_path / "personachat.jsonl.gz"
    packed.write_bytes(gzip.compress((DATA / "personachat.jsonl").read_bytes()))
    assert list(read_dialogues(packed)) == list(read_dialogues(DATA / "personachat.jsonl"))


def test_parlai_text_gives_the_bot_its_own_persona_and_turns() -> None:
    dialogue = next(read_dialogues(DATA / "parlai.txt"))
    assert dialogue.facts[0] == "i read twenty books a year."
    assert dialogue.partner_facts[0] == "horror movies are my favorites."
    assert [turn.role for turn in dialogue.turns[:2]] == [Role.USER, Role.BOT]
    assert dialogue.turns[1].text == "i am good , i just got off work and tired , i have two jobs ."


def test_candidates_do_not_become_turns() -> None:
    dialogue = next(read_dialogues(DATA / "parlai_candidates.txt"))
    assert all("|" not in turn.text for turn in dialogue.turns)


def test_named_dialogues_say_the_name_as_a_fact() -> None:
    dialogue = next(read_dialogues(DATA / "named.jsonl"))
    assert dialogue.name == "Jamie Smith"
    assert dialogue.facts[:2] == ("My name is Jamie Smith.", "I am 25 years old.")


def test_dialogues_with_a_placeholder_for_a_name_are_left_out() -> None:
    raw = (DATA / "spc.jsonl").read_text()
    assert "[user 1's name]" in raw
    assert all("name]" not in turn.text for d in read_dialogues(DATA / "spc.jsonl") for turn in d.turns)


def test_several_messages_in_a_row_keep_their_speaker() -> None:
    roles = [turn.role for turn in next(read_dialogues(DATA / "chitchat.json")).turns]
    assert roles[:2] == [Role.USER, Role.USER]
    assert Role.BOT in roles


def test_flipping_twice_gives_the_same_dialogue() -> None:
    dialogue = next(read_dialogues(DATA / "named.jsonl"))
    assert dialogue.flipped() != dialogue
    assert dialogue.flipped().flipped() == dialogue


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        ("personachat", '{"p1": [], "turns": ["a"]}\n{"p1": [}', "line 2: expected one JSON object a line"),
        ("personachat", '{"p1": []}', "line 1: expected .*turns"),
        ("spc", '{"p1": [], "p2": [], "turns": ["a"]}', "line 1: expected .*1 or 2"),
        ("named", '{"persona1": {}, "persona2": {}, "turns": []}', "line 1: expected .*background"),
        ("parlai", "1 your persona: x\nhello\tthere", "line 2: expected a line number"),
        ("parlai", "1 hello", "line 1: expected 'their turn<TAB>your turn'"),
        ("spc-csv", "user 1 personas,b\n", "line 1: expected the columns"),
        ("chitchat", '{"a": {"messages": [[{"text": "x"}]]}}', "dialogue a: expected"),
    ],
)
def test_a_damaged_file_is_refused_with_place_and_shape(tmp_path: Path, format: str, text: str, message: str) -> None:
    path = tmp_path / "data.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_dialogues(path, format))


def test_a_file_of_no_known_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.log"
    path.write_text("Dear diary,")
    with pytest.raises(DataError, match=r"line 1: of no format known here\. Expected PersonaChat"):
        list(read_dialogues(path))


def test_an_unknown_format_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=", ".join(PARSERS)):
        list(read_dialogues(DATA / "parlai.txt", "yaml"))


def test_a_truncated_gzip_file_is_an_error_of_ours(tmp_path: Path) -> None:
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress((DATA / "personachat.jsonl").read_bytes())[:-200])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_dialogues(packed, "personachat"))
