"""The data sets of two people with personas: PersonaChat in its three forms, Synthetic-Persona-Chat in its three."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trainer.formats.dialogue import Choice, DataError, Dialogue, Reading, strings, turns_of
from trainer.formats.files import dialogues_from, json_lines, lines, table, whole_json

SILENCE = "__SILENCE__"


def read_personachat(reading: Reading) -> Iterator[Dialogue]:
    """A line: `{"p1": [facts], "p2": [facts], "turns": [texts, p1 first]}`."""

    def build(data: dict[str, Any]) -> Dialogue:
        pairs = [(1 + index % 2, text) for index, text in enumerate(strings(data["turns"]))]
        return Dialogue(strings(data.get("p2", ())), turns_of(pairs), strings(data.get("p1", ())))

    return dialogues_from(
        reading, json_lines(reading), build, '{"p1": [facts], "p2": [facts], "turns": [texts, p1 first]}'
    )


def read_spc(reading: Reading) -> Iterator[Dialogue]:
    """A line: `{"p1": [facts], "p2": [facts], "turns": [{"s": 1 or 2, "t": text}]}`.

    A turn with `"untrained": true` is context, whoever says it.
    """

    def build(data: dict[str, Any]) -> Dialogue:
        said = [t for t in data["turns"] if t["t"].strip()]
        untrained = frozenset(index for index, t in enumerate(said) if t.get("untrained"))
        turns = turns_of([(t["s"], t["t"]) for t in said])
        return Dialogue(strings(data["p2"]), turns, strings(data["p1"]), untrained=untrained)

    return dialogues_from(
        reading, json_lines(reading), build, '{"p1": [facts], "p2": [facts], "turns": [{"s": 1 or 2, "t": text}]}'
    )


def read_named(reading: Reading) -> Iterator[Dialogue]:
    """A line: `{"persona1": {"name", "age", "background"}, "persona2": {...}, "turns": [{"s", "t"}]}`."""

    def facts(person: dict[str, Any]) -> tuple[str, ...]:
        background = re.split(r"(?<=[.!?])\s+", person["background"].strip())
        age = [f"I am {person['age']} years old."] if str(person.get("age", "")).isdigit() else []
        return (f"My name is {person['name']}.", *age, *(fact for fact in background if fact))

    def build(data: dict[str, Any]) -> Dialogue:
        one, two = data["persona1"], data["persona2"]
        turns = turns_of([(t["s"], t["t"]) for t in data["turns"]])
        return Dialogue(facts(two), turns, facts(one), two["name"], one["name"])

    shape = '{"persona1": {"name", "background"}, "persona2": {...}, "turns": [{"s", "t"}]}'
    return dialogues_from(reading, json_lines(reading), build, shape)


def read_spc_csv(reading: Reading) -> Iterator[Dialogue]:
    """Synthetic-Persona-Chat as its publisher writes it: both personas and "User 1: ..." lines in one cell each."""
    columns = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
    for _, row in table(reading, columns):
        found = re.finditer(r"^User (\d): ?(.*)$", row[columns[2]], flags=re.MULTILINE)
        one, two = (tuple(filter(None, map(str.strip, row[name].split("\n")))) for name in columns[:2])
        yield Dialogue(two, turns_of([(int(match[1]), match[2]) for match in found]), one)


def read_parlai(reading: Reading) -> Iterator[Dialogue]:
    """ParlAI text: `N your persona: ...`, then `N their turn<TAB>your turn[<TAB><TAB>candidate|candidate|...]`."""
    facts: list[str] = []
    partner: list[str] = []
    pairs: list[tuple[int, str]] = []
    choices: list[Choice] = []

    def finished() -> Dialogue:
        return Dialogue(tuple(facts), turns_of(pairs), tuple(partner), choices=tuple(choices))

    for index, rest in _numbered(reading):
        if index == "1" and (pairs or facts):
            yield finished()
            facts, partner, pairs, choices = [], [], [], []
        fields = rest.split("\t")
        if rest.startswith("your persona:"):
            facts.append(rest.removeprefix("your persona:").strip())
        elif rest.startswith("partner's persona:"):
            partner.append(rest.removeprefix("partner's persona:").strip())
        else:
            pairs += [(1, "" if fields[0] == SILENCE else fields[0]), (2, fields[1])]
            if len(fields) > 3 and (wrong := _wrong(fields[1], fields[3].split("|"))):
                choices.append(Choice(fields[1].strip(), wrong))
    if pairs or facts:
        yield finished()


def _numbered(reading: Reading) -> Iterator[tuple[str, str]]:
    """Yield ParlAI's own number and the rest of each line, which is a persona's or has a tab."""
    for number, line in lines(reading):
        if not line.strip():
            continue
        with reading.rejecting():
            index, _, rest = line.partition(" ")
            place = f"{reading.path}: line {number}"
            if not index.isdigit():
                raise DataError(f"{place}: expected a line number, a space and text, got {line[:40]!r}")
            if "\t" not in rest and not rest.startswith(("your persona:", "partner's persona:")):
                raise DataError(f"{place}: expected 'their turn<TAB>your turn', found no tab")
            yield index, rest


def read_hf_personachat(reading: Reading) -> Iterator[Dialogue]:
    """The Hugging Face file: splits of `{"personality": [facts], "utterances": [{"candidates", "history"}]}`.

    Of a file with several splits the wanted one is read; a bare list, or an object a line, is one split.
    The utterances of an entry are one dialogue: the last one's history and its last candidate, the right reply.
    """
    shape = '{"train": [{"personality": [facts], "utterances": [{"candidates": [..., reply], "history": [...]}]}]}'
    return dialogues_from(reading, _entries(reading, shape), _merged_utterances, shape)


def _entries(reading: Reading, shape: str) -> Iterator[tuple[str, Any]]:
    try:
        data = whole_json(reading.path, shape)
    except DataError as error:
        if "Extra data" not in str(error):
            raise
        yield from json_lines(reading)
        return
    if isinstance(data, dict) and "utterances" in data:
        data = [data]
    if isinstance(data, dict):
        if reading.split not in data:
            names = ", ".join(map(str, list(data)[:6]))
            raise DataError(f"{reading.path}: expected a split called {reading.split!r}; it has: {names}")
        data = data[reading.split]
    if not isinstance(data, list):
        raise DataError(f"{reading.path}: expected {shape}")
    for index, entry in enumerate(data, 1):
        reading.count()
        yield f"entry {index}", entry


def _merged_utterances(entry: dict[str, Any]) -> Dialogue:
    utterances = entry["utterances"]
    last = utterances[-1]
    texts = [*strings(last["history"]), strings(last["candidates"])[-1]]
    pairs = [(2 if (len(texts) - 1 - index) % 2 == 0 else 1, text) for index, text in enumerate(texts)]
    pairs = [(speaker, "" if text == SILENCE else text) for speaker, text in pairs]
    choices = []
    for utterance in utterances:
        *wrong, reply = strings(utterance["candidates"])
        if kept := _wrong(reply, wrong):
            choices.append(Choice(reply.strip(), kept))
    return Dialogue(strings(entry["personality"]), turns_of(pairs), choices=tuple(choices))


def _wrong(reply: str, candidates: list[str]) -> tuple[str, ...]:
    return tuple(c.strip() for c in candidates if c.strip() and c.strip() != reply.strip())
