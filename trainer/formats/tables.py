"""Tables: replies with their context, scripts of who says what, and DialoGPT's weighted TSV."""

from __future__ import annotations

import re
from collections.abc import Iterator

from personas.conversation import Role, Turn
from trainer.formats.dialogue import DataError, Dialogue, Reading
from trainer.formats.files import lines, table
from trainer.formats.people import Line, dialogues_of

# What separates several facts, or several turns, within one cell.
SEPARATOR = re.compile(r"\n|\s\|\s|\sEOS\s|\s?__eou__\s?")
WEIGHTED = re.compile(r"([01](?:\.\d+)?)\s(.*)", re.DOTALL)
TSV = "0.0 first turn EOS 1.0 second turn<TAB>1.0 reply"


def read_csv(reading: Reading) -> Iterator[Dialogue]:
    """Columns `context` and `response`, perhaps `persona`; only the response is trained.

    Older turns stand above newer ones in `context`, or in further columns `context/0`, `context/1`, ..., newest first.
    """
    for _, row in table(reading, ("context", "response")):
        older = [name for name in row if re.fullmatch(r"context(/\d+)?", name)]
        texts = [text for name in reversed(older) for text in _parts(row[name])]
        # Counted back from the response, which is the bot's.
        turns = [
            Turn(Role.USER if index % 2 else Role.BOT, text)
            for index, text in enumerate([row["response"].strip(), *reversed(texts)])
        ]
        if turns[0].text:
            facts = _parts(row.get("persona", ""))
            yield Dialogue(tuple(facts), tuple(reversed(turns)), untrained=frozenset(range(len(texts))))


def read_script(reading: Reading) -> Iterator[Dialogue]:
    """Columns `name` and `line`, in order; another value of a column `scene` or `episode` begins a conversation."""
    said: list[Line] = []
    scene = ""
    for _, row in table(reading, ("name", "line")):
        now = row.get("scene", "") + "\t" + row.get("episode", "")
        if row["name"].strip() and row["line"].strip():
            said.append(Line(row["name"].strip(), row["line"].strip(), is_first=now != scene))
            scene = now
    return dialogues_of(said, reading, has_default=True)


def read_dialogpt(reading: Reading) -> Iterator[Dialogue]:
    """DialoGPT's TSV: turns joined by EOS, each after its weight; a turn of weight 0 carries no loss."""
    for number, line in lines(reading):
        if not line.strip():
            continue
        context, tab, reply = line.partition("\t")
        found = [WEIGHTED.fullmatch(part.strip()) for part in (*context.split(" EOS "), reply)]
        said = [(float(match[1]), match[2].strip()) for match in found if match and match[2].strip()]
        turns = tuple(
            Turn(Role.BOT if index % 2 == 0 else Role.USER, text)
            for index, (_, text) in zip(range(len(said) - 1, -1, -1), said, strict=True)
        )
        with reading.rejecting():
            if not tab or len(said) < len(found):
                raise DataError(f"{reading.path}: line {number}: expected '{TSV}', got {line[:60]!r}")
            yield Dialogue((), turns, untrained=frozenset(i for i, (weight, _) in enumerate(said) if not weight))


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in SEPARATOR.split(cell) if part.strip()]
