"""Dialogue files as people have them, read into one shape. Owns parsing and its errors, not sampling or tokens.

Each format has one parser; `read_dialogues` recognises a file by its first lines. Files may be gzipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from personas.conversation import Role, Turn
from personas.errors import PersonabotError

# Synthetic-Persona-Chat's generator left these where a name belongs.
PLACEHOLDER = re.compile(r"\[[^\]]*\bname\b[^\]]*\]|\bparticipant_\d", re.IGNORECASE)
SILENCE = "__SILENCE__"


class DataError(PersonabotError):
    """A data file is not what its format says; names file, line and the expected shape."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue from the bot's side. `partner_facts` are the other speaker's, where the data has them.

    `name` is the bot's own name where the data states it apart from the facts.
    """

    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    partner_facts: tuple[str, ...] = ()
    name: str = ""
    partner_name: str = ""

    def flipped(self) -> Dialogue:
        """Return the same dialogue from the other speaker's side."""
        swap = {Role.USER: Role.BOT, Role.BOT: Role.USER}
        turns = tuple(replace(turn, role=swap[turn.role]) for turn in self.turns)
        return Dialogue(self.partner_facts, turns, self.facts, self.partner_name, self.name)


def read_dialogues(path: Path, format: str | None = None) -> Iterator[Dialogue]:
    """Yield the dialogues of `path`; the second speaker is the bot. Raise `DataError` for anything else.

    Dialogues with an unfilled name placeholder are left out.
    """
    chosen = format or sniff(path)
    if chosen not in PARSERS:
        raise DataError(f"{path}: unknown format {chosen!r}. Known: {', '.join(PARSERS)}.")
    try:
        for dialogue in PARSERS[chosen](path):
            if dialogue.turns and not any(PLACEHOLDER.search(turn.text) for turn in dialogue.turns):
                yield dialogue
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def sniff(path: Path) -> str:
    """Recognise the format of `path` by its beginning."""
    try:
        with open_text(path) as file:
            start = file.read(20_000)
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    first = start.lstrip().partition("\n")[0]
    if first.lower().startswith("user 1 personas,"):
        return "spc-csv"
    if re.match(r"\d+ \S", first):
        return "parlai"
    if first.startswith("{"):
        return _sniff_json(first, start)
    raise DataError(
        f"{path}: line 1: expected PersonaChat or Synthetic-Persona-Chat JSONL, ParlAI text ('1 your persona: ...'), "
        "Synthetic-Persona-Chat CSV ('user 1 personas,...') or chit-chat JSON. Name it with --format if it is one."
    )


def _sniff_json(first: str, start: str) -> str:
    if '"messages"' in start and '"sender"' in start:
        return "chitchat"
    if '"persona1"' in first:
        return "named"
    if '"turns": [{' in first or '"turns":[{' in first:
        return "spc"
    return "personachat"


def open_text(path: Path) -> io.TextIOBase:
    """Open a text file, gzipped or not."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _turns(pairs: list[tuple[int, str]]) -> tuple[Turn, ...]:
    """Make turns of (speaker 1 or 2, text); speaker 2 is the bot. Empty ones go."""
    return tuple(Turn(Role.BOT if s == 2 else Role.USER, text.strip()) for s, text in pairs if text.strip())


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number}: expected one JSON object a line ({error})") from error
            if not isinstance(data, dict):
                raise DataError(f"{path}: line {number}: expected a JSON object, got {type(data).__name__}")
            yield number, data


def _jsonl(path: Path, build: Callable[[dict[str, Any]], Dialogue], shape: str) -> Iterator[Dialogue]:
    for number, data in _json_lines(path):
        try:
            yield build(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: line {number}: expected {shape} (problem: {error!r})") from error


def _personachat(path: Path) -> Iterator[Dialogue]:
    def build(data: dict[str, Any]) -> Dialogue:
        pairs = [(1 + index % 2, text) for index, text in enumerate(data["turns"])]
        return Dialogue(tuple(data.get("p2", ())), _turns(pairs), tuple(data.get("p1", ())))

    return _jsonl(path, build, '{"p1": [facts], "p2": [facts], "turns": [texts, p1 first]}')


def _spc(path: Path) -> Iterator[Dialogue]:
    def build(data: dict[str, Any]) -> Dialogue:
        return Dialogue(tuple(data["p2"]), _turns([(t["s"], t["t"]) for t in data["turns"]]), tuple(data["p1"]))

    return _jsonl(path, build, '{"p1": [facts], "p2": [facts], "turns": [{"s": 1 or 2, "t": text}]}')


def _named(path: Path) -> Iterator[Dialogue]:
    def facts(person: dict[str, Any]) -> tuple[str, ...]:
        background = re.split(r"(?<=[.!?])\s+", person["background"].strip())
        age = [f"I am {person['age']} years old."] if str(person.get("age", "")).isdigit() else []
        return (f"My name is {person['name']}.", *age, *(fact for fact in background if fact))

    def build(data: dict[str, Any]) -> Dialogue:
        one, two = data["persona1"], data["persona2"]
        turns = _turns([(t["s"], t["t"]) for t in data["turns"]])
        return Dialogue(facts(two), turns, facts(one), two["name"], one["name"])

    return _jsonl(path, build, '{"persona1": {"name", "background"}, "persona2": {...}, "turns": [{"s", "t"}]}')


def _parlai(path: Path) -> Iterator[Dialogue]:
    facts: list[str] = []
    partner: list[str] = []
    pairs: list[tuple[int, str]] = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            index, _, rest = line.rstrip("\n").partition(" ")
            if not line.strip():
                continue
            if not index.isdigit():
                raise DataError(f"{path}: line {number}: expected a line number, a space and text, got {line[:40]!r}")
            if index == "1" and (pairs or facts):
                yield Dialogue(tuple(facts), _turns(pairs), tuple(partner))
                facts, partner, pairs = [], [], []
            if rest.startswith("your persona:"):
                facts.append(rest.removeprefix("your persona:").strip())
            elif rest.startswith("partner's persona:"):
                partner.append(rest.removeprefix("partner's persona:").strip())
            else:
                fields = rest.split("\t")
                if len(fields) < 2:
                    raise DataError(f"{path}: line {number}: expected 'their turn<TAB>your turn', found no tab")
                pairs += [(1, "" if fields[0] == SILENCE else fields[0]), (2, fields[1])]
    if pairs or facts:
        yield Dialogue(tuple(facts), _turns(pairs), tuple(partner))


def _spc_csv(path: Path) -> Iterator[Dialogue]:
    columns = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
    with open_text(path) as file:
        rows = csv.DictReader(file)
        if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
            raise DataError(f"{path}: line 1: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}")
        for row in rows:
            if any(row[name] is None for name in columns):
                raise DataError(f"{path}: line {rows.line_num}: expected {len(columns)} fields in the row")
            pairs = [
                (int(match[1]), match[2])
                for match in re.finditer(r"^User (\d): ?(.*)$", row[columns[2]], flags=re.MULTILINE)
            ]
            one, two = (tuple(filter(None, map(str.strip, row[name].split("\n")))) for name in columns[:2])
            yield Dialogue(two, _turns(pairs), one)


def _chitchat(path: Path) -> Iterator[Dialogue]:
    with open_text(path) as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise DataError(f"{path}: expected one JSON object of dialogues ({error})") from error
    for key, entry in data.items():
        try:
            messages = [message for group in entry["messages"] for message in group]
            senders = list(dict.fromkeys(message["sender"] for message in messages))
            pairs = [(1 + min(senders.index(message["sender"]), 1), message["text"]) for message in messages]
        except (KeyError, TypeError) as error:
            raise DataError(
                f'{path}: dialogue {key}: expected {{"messages": [[{{"text", "sender"}}]]}} (problem: {error!r})'
            ) from error
        yield Dialogue((), _turns(pairs))


PARSERS: dict[str, Callable[[Path], Iterator[Dialogue]]] = {
    "personachat": _personachat,
    "spc": _spc,
    "named": _named,
    "parlai": _parlai,
    "spc-csv": _spc_csv,
    "chitchat": _chitchat,
}
