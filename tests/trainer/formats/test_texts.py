"""Plain text, chats exported by their owners, and a persona's own folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personas.conversation import Role
from personas.errors import PersonaFileError
from trainer.formats import DataError, Dialogue, UnknownSpeaker, read_dialogues, sniff

ANDROID = (
    "12/31/23, 9:41\u202fPM - Messages and calls are end-to-end encrypted.\n"
    "12/31/23, 9:41\u202fPM - Ann: hey: you\nstill up?\n12/31/23, 9:43\u202fPM - Bo Li: yes\n"
    "12/31/23, 9:44\u202fPM - Bo Li: <Media omitted>\n1/1/24, 10:44\u202fAM - Ann: happy new year\n"
    "1/1/24, 10:45\u202fAM - Bo Li: and to you\n"
)
IOS = "\u200e[31.12.23, 21:41:02] Ann: hey\n[31.12.23, 21:43:10] Bo Li: yes\n[31.12.23, 22:44:00] Bo Li: hello?\n"


def said(dialogue: Dialogue) -> list[tuple[Role, str]]:
    return [(turn.role, turn.text) for turn in dialogue.turns]


def written(tmp_path: Path, text: str, name: str = "a.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def message(date: str, name: str, text: object, **more: str) -> dict[str, object]:
    return {"type": "message", "date": date, "from": name, "text": text, **more}


def test_prose_comes_in_pieces_that_make_up_the_text_again(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} of a long story, told slowly." * 8 for number in range(60))
    path = written(tmp_path, text + "\n")
    pieces = [dialogue.turns[0].text for dialogue in read_dialogues(path)]
    assert sniff(path) == "corpus"
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert max(map(len, pieces)) < 8500


def test_a_mark_parts_texts_and_each_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "First dream.\n<|endoftext|>\nSecond dream.\n\f\nThird.")
    assert [d.turns[0].text for d in read_dialogues(path)] == ["First dream.", "Second dream.", "Third."]


def test_objects_with_a_text_are_texts_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path, '{"text": "First dream."}\n{"text": "Second [no name]."}\n', "a.jsonl")
    assert sniff(path) == "documents"
    assert [d.turns[0].text for d in read_dialogues(path)] == ["First dream.", "Second [no name]."]


def test_named_lines_are_dialogue_and_an_empty_line_ends_it(tmp_path: Path) -> None:
    path = written(tmp_path, "Ann: hey\nBo: yes?\nwhat is it\n\nAnn: again\nBo: still here\n")
    first, second = read_dialogues(path)
    assert sniff(path) == "dialogue"
    assert first.name == "Bo"
    assert said(first) == [(Role.USER, "hey"), (Role.BOT, "yes?\nwhat is it")]
    assert said(second) == [(Role.USER, "again"), (Role.BOT, "still here")]


def test_a_conversation_without_end_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path, "Ann: hey\nBo: yes?\n" * 100)
    lengths = [len(dialogue.turns) for dialogue in read_dialogues(path)]
    assert sum(lengths) == 200
    assert max(lengths) == 60


@pytest.mark.parametrize("text", [ANDROID, IOS])
def test_a_whatsapp_chat_is_split_where_people_paused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    first, second = read_dialogues(path, speaker="Bo Li")
    assert sniff(path) == "whatsapp"
    assert first.name == "Bo Li"
    assert [role for role, _ in said(first)] == [Role.USER, Role.BOT]
    assert said(second)[-1][0] is Role.BOT


def test_a_whatsapp_message_keeps_its_further_lines_and_colons(tmp_path: Path) -> None:
    first, _ = read_dialogues(written(tmp_path, ANDROID), speaker="Bo Li")
    assert said(first) == [(Role.USER, "hey: you\nstill up?"), (Role.BOT, "yes")]


def test_a_telegram_export_of_one_chat_or_all_is_told_from_my_side(tmp_path: Path) -> None:
    chat = {
        "name": "Ann",
        "type": "personal_chat",
        "messages": [
            {"type": "service", "date": "2024-01-01T10:00:00", "action": "phone_call", "text": ""},
            message("2024-01-01T10:00:00", "Ann", "hey"),
            message("2024-01-01T10:01:00", "Me", ["look: ", {"type": "link", "text": "https://a.b"}]),
            message("2024-01-01T10:01:30", "Me", "not mine", forwarded_from="News"),
            message("2024-01-01T11:01:31", "Ann", "later"),
            message("2024-01-01T11:02:00", "Me", "yes"),
        ],
    }
    one = written(tmp_path, json.dumps(chat, indent=1), "result.json")
    every = written(tmp_path, json.dumps({"about": "x", "chats": {"list": [chat, chat]}}), "all.json")
    first, second = read_dialogues(one, speaker="Me")
    assert sniff(one) == sniff(every) == "telegram"
    assert said(first) == [(Role.USER, "hey"), (Role.BOT, "look: https://a.b")]
    assert said(second) == [(Role.USER, "later"), (Role.BOT, "yes")]
    assert list(read_dialogues(every, speaker="me")) == [first, second] * 2


def test_an_export_does_not_guess_who_is_me(tmp_path: Path) -> None:
    with pytest.raises(UnknownSpeaker, match=r"whose lines .*--me.*Ann \(2\), Bo Li \(2\)"):
        list(read_dialogues(written(tmp_path, ANDROID)))
    with pytest.raises(UnknownSpeaker, match=r"nobody in it is called 'Cy'\. Name one with --speaker"):
        list(read_dialogues(written(tmp_path, ANDROID), speaker="Cy"))


def test_a_persona_folder_gives_its_facts_to_data_without_any(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path, "name: Bo\nfacts: [My name is Bo., I sail.]\n", "card.yaml")
    written(tmp_path / "data", "Ann: hey\nBo: yes?\nCy: ho\nAnn: hm\n", "a.txt")
    written(tmp_path / "data", '{"messages": [{"role": "system", "content": "I row."}, '
            '{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}', "b.jsonl")  # fmt: skip
    first, second = read_dialogues(tmp_path)
    assert (first.name, first.facts) == ("Bo", ("My name is Bo.", "I sail."))
    assert second.facts == ("I row.",)


def test_a_folder_without_card_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonaFileError, match=r"card\.yaml"):
        list(read_dialogues(tmp_path))
    written(tmp_path, "name: Bo\n", "card.yaml")
    with pytest.raises(DataError, match=r"expected card\.yaml and files of dialogue or text in data/"):
        list(read_dialogues(tmp_path))


@pytest.mark.parametrize(
    ("format", "text", "message"),
    [
        ("dialogue", "hello\nAnn: x\n", "line 1: expected 'Name: text'"),
        ("whatsapp", "hello\n", "line 1: expected '31/12/2023"),
        ("whatsapp", "99/99/23, 10:00 - Ann: x\n", "expected dates in one order"),
        ("telegram", '{"chats": 3}', "expected .*messages"),
        ("telegram", '{"messages": [{"type": "message", "from": "A", "text": "b"}]}', "expected .*date"),
        ("documents", '{"text": 3}', 'line 1: expected {"text": text}'),
    ],
)
def test_damaged_texts_are_refused_with_place_and_shape(tmp_path: Path, format: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_dialogues(written(tmp_path, text), format, speaker="Ann"))
