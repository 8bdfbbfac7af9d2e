"""From how many sides a dialogue is told: from both only where the other speaker's turns are worth learning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from personas.layout import Part
from tests.helpers.cli import home, personabot, tiny_model
from tests.helpers.layouts import persona_layout
from trainer.config import Source
from trainer.data import Corpus, Stream
from trainer.formats import DataError

__all__ = ["home", "tiny_model"]
DATA = Path(__file__).parent / "data"
SCRIPT = "name,line\nMorty,aw geez\nRick,quiet now\nSummer,what is it\nRick,science\n"
ASKED = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "nobody"}]
SYSTEM = {"role": "system", "content": "I am Ada."}
TALK = {"personality": ["i fish."], "utterances": [{"history": ["hi"], "candidates": ["no", "hello"]}]}
TELEGRAM = [
    {"type": "message", "date": "2024-01-01T10:00:00", "from": name, "text": text}
    for name, text in (("Ann", "hey"), ("Bo", "yes?"))
]
ONE_SIDED = {
    "script": SCRIPT,
    "messages": json.dumps({"messages": [SYSTEM, *ASKED]}),
    "messages without facts": json.dumps({"messages": ASKED}),
    "completion": json.dumps({"prompt": "who?", "completion": "me"}),
    "sharegpt": json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    "hf-personachat": json.dumps({"train": [TALK]}),
    "parlai of one persona": "1 your persona: i fish.\n2 hi\thello\n",
    "csv": "context,response\nhi,hello\n",
    "dialogpt with weights": "0.0 hi EOS 1.0 you there?\t1.0 hello\n",
    "dialogue": "Ann: hi\nRick: hello\n\nAnn: who\nRick: me\n",
    "corpus": "It was night. Nobody was there.\n",
    "documents": json.dumps({"text": "It was night."}),
    "telegram": json.dumps({"type": "personal_chat", "messages": TELEGRAM}),
    "whatsapp": "31/12/2023, 21:41 - Ann: hey\n31/12/2023, 21:42 - Rick: yes?\n",
}
TWO_SIDED = {
    "personachat": json.dumps({"p1": ["i fish."], "p2": ["i ski."], "turns": ["hi", "hello"]}),
    "parlai of two personas": (DATA / "parlai.txt").read_text(),
    "parlai without personas": "1 hi\thello\n2 who\tme\n",
    "spc": (DATA / "spc.jsonl").read_text(),
    "spc-csv": (DATA / "spc.csv").read_text(),
    "named": (DATA / "named.jsonl").read_text(),
    "chitchat": (DATA / "chitchat.json").read_text(),
    "dialogpt": "1.0 hi EOS 1.0 you there?\t1.0 hello\n",
}
SPEAKERS = {"script": "Rick", "dialogue": "Rick", "whatsapp": "Rick", "telegram": "Bo"}


def corpus(folder: Path, name: str, text: str, **options: object) -> Corpus:
    path = folder / "data.txt"
    path.write_text(text, encoding="utf-8")
    source = {"path": path, "format": name.split()[0], "speaker": SPEAKERS.get(name, ""), **options}
    return Corpus.read(Source.model_validate(source))


@pytest.mark.parametrize("name", ONE_SIDED)
def test_where_only_the_bot_is_somebody_only_its_turns_are_learnt(tmp_path: Path, name: str) -> None:
    found = corpus(tmp_path, name, ONE_SIDED[name])
    assert found.num_tellings == len(found.dialogues) > 0
    assert not any(side for _, side in found.tellings)


@pytest.mark.parametrize("name", TWO_SIDED)
def test_where_both_have_facts_or_nobody_is_anybody_a_dialogue_is_told_from_both_sides(
    tmp_path: Path, name: str
) -> None:
    found = corpus(tmp_path, name, TWO_SIDED[name])
    assert found.num_tellings == 2 * len(found.dialogues) > 0


def test_what_others_say_to_the_speaker_is_never_trained(tmp_path: Path) -> None:
    layout, script = persona_layout(), corpus(tmp_path, "script", SCRIPT)
    stream = Stream([script], layout, seed=1, micro_tokens=500, max_tokens=200, loss_on="bot")
    rows = [row for cursor in range(4) for group in stream.groups(script, cursor) for row in group.rows]
    trained = [
        layout.spelled(i for i, part in zip(row.ids, row.parts, strict=True) if part is not Part.CONTEXT)
        for row in rows
    ]
    assert trained == ["quiet now<eos>science<eos>"] * 4


@pytest.mark.parametrize("name", ["script", "personachat"])
def test_what_is_asked_for_wins(tmp_path: Path, name: str) -> None:
    text = {**ONE_SIDED, **TWO_SIDED}[name]
    both, one = (corpus(tmp_path, name, text, both_sides=asked) for asked in (True, False))
    assert both.num_tellings == 2 * one.num_tellings == 2 * len(one.dialogues)


def test_dialogues_of_both_kinds_in_a_file_are_told_each_in_its_own_way(tmp_path: Path) -> None:
    lines = [{"p1": facts, "p2": ["i ski."], "turns": ["hi", "hello"]} for facts in (["i fish."], [])]
    found = corpus(tmp_path, "personachat", "\n".join(map(json.dumps, lines)))
    assert found.tellings == [(0, 0), (0, 1), (1, 0)]


def test_data_in_which_the_bot_says_nothing_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"messages": ASKED[:1]})
    silent = corpus(tmp_path, "messages", text)
    stream = Stream([silent], persona_layout(), seed=1, micro_tokens=500, max_tokens=200, loss_on="bot")
    with pytest.raises(DataError, match=r"data\.txt: nothing to learn: the bot says nothing in it"):
        next(stream.batches())


def test_inspect_says_from_how_many_sides_dialogues_are_told(home: Path, tiny_model: Path) -> None:
    arguments = ("inspect", DATA / "parlai.txt", "--model-path", tiny_model)
    assert "told from both sides  2 of 2" in personabot(*arguments, home=home).stdout


def test_train_takes_a_flag_for_the_sides(home: Path) -> None:
    (home / "script.csv").write_text(SCRIPT)
    length = ("--train-tokens", "64", "--batch-tokens", "64", "--micro-tokens", "64", "--dtype", "fp32")
    done = personabot("train", "script.csv", "--speaker", "Rick", "--one-side", "--out", "run", *length, home=home)
    assert done.returncode == 0, done.stderr
    assert "both_sides = false" in (home / "run" / "train.toml").read_text()
