"""Messages, prompt and completion, ShareGPT, and PersonaChat as Hugging Face has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personas.conversation import Role
from trainer.formats import Choice, DataError, Dialogue, read_dialogues, sniff

MESSAGES = {
    "messages": [
        {"role": "system", "content": "I am Ada.\nI keep bees."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hi!"}]},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi!"}]}
ENTRY = {
    "personality": ["i keep bees ."],
    "utterances": [
        {"history": ["hello"], "candidates": ["no way", "i like tea", "hi !"]},
        {"history": ["hello", "hi !", "pets ?"], "candidates": ["blue", "yes , bees"]},
    ],
}
HF = {"train": [ENTRY], "valid": [{**ENTRY, "personality": ["i am held out ."]}]}


def read(tmp_path: Path, text: str, name: str = "data.json", **options: str) -> list[Dialogue]:
    path = tmp_path / name
    path.write_text(text)
    return list(read_dialogues(path, **options))


def said(dialogue: Dialogue) -> list[tuple[Role, str]]:
    return [(turn.role, turn.text) for turn in dialogue.turns]


@pytest.mark.parametrize(
    ("record", "format"),
    [(MESSAGES, "messages"), (SHAREGPT, "sharegpt"), ({"prompt": "hello", "completion": "hi!"}, "completion")],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_chat_data_is_read_from_lines_and_from_an_array(
    tmp_path: Path, record: dict[str, object], format: str, is_array: bool
) -> None:
    text = json.dumps([record, record], indent=1) if is_array else f"{json.dumps(record)}\n{json.dumps(record)}\n"
    dialogues = read(tmp_path, text)
    assert sniff(tmp_path / "data.json") == format
    assert [said(dialogue) for dialogue in dialogues] == [[(Role.USER, "hello"), (Role.BOT, "hi!")]] * 2


def test_what_the_system_says_are_the_facts_one_a_line(tmp_path: Path) -> None:
    [dialogue] = read(tmp_path, json.dumps(MESSAGES))
    assert dialogue.facts == ("I am Ada.", "I keep bees.")


def test_of_prompt_and_completion_only_the_completion_is_trained(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    [dialogue] = read(tmp_path, json.dumps({"prompt": prompt, "completion": "d"}))
    assert dialogue.untrained == {0, 1, 2}
    assert said(dialogue)[-1] == (Role.BOT, "d")


def test_a_persona_entry_of_hugging_face_is_one_dialogue_with_its_candidates(tmp_path: Path) -> None:
    [dialogue] = read(tmp_path, json.dumps(HF))
    assert sniff(tmp_path / "data.json") == "hf-personachat"
    assert dialogue.facts == ("i keep bees .",)
    assert said(dialogue) == [
        (Role.USER, "hello"), (Role.BOT, "hi !"), (Role.USER, "pets ?"), (Role.BOT, "yes , bees"),
    ]  # fmt: skip
    assert dialogue.choices == (Choice("hi !", ("no way", "i like tea")), Choice("yes , bees", ("blue",)))


@pytest.mark.parametrize("text", [json.dumps([ENTRY]), json.dumps(ENTRY), f"{json.dumps(ENTRY)}\n"])
def test_one_split_alone_is_read_too(tmp_path: Path, text: str) -> None:
    assert len(read(tmp_path, text)) == 1


def test_another_split_can_be_named_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    [held_out] = read(tmp_path, json.dumps(HF), split="valid")
    assert held_out.facts == ("i am held out .",)
    with pytest.raises(DataError, match="expected a split called 'test'; it has: train, valid"):
        read(tmp_path, json.dumps(HF), split="test")


def test_parlai_candidates_are_kept_without_the_reply_itself() -> None:
    dialogue = next(read_dialogues(Path(__file__).parents[1] / "data" / "parlai_candidates.txt"))
    replies = [turn.text for turn in dialogue.turns if turn.role is Role.BOT]
    assert [choice.reply for choice in dialogue.choices] == replies
    assert all(len(choice.wrong) == 19 for choice in dialogue.choices)
    assert all(choice.reply not in choice.wrong for choice in dialogue.choices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "line 1: expected .*unknown speaker 'wizard'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 1: expected .*expected a text, got '3'"),
        ('{"conversations": [{"from": "gpt"}]}', "line 1: expected .*value"),
        ('[{"conversations": 5}]', "item 1: expected .*conversations"),
        ('{"prompt": "a", "completion": null}', "line 1: expected .*completion"),
        ('{"train": [{"personality": "x", "utterances": []}]}', "entry 1: expected .*personality"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        ('{"guild": {}, "channel": {}, "messages": []}', "Discord's Developer Policy forbids"),
    ],
)
def test_damaged_chat_data_is_refused_with_place_and_shape(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)
