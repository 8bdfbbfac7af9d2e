"""Lines that people with names say: who of them is the bot, and where one conversation ends and the next begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from personas.conversation import Role, Turn
from trainer.formats.dialogue import DataError, Dialogue, Reading, UnknownSpeaker

# A pause after which people begin anew.
MAX_GAP = timedelta(hours=1)
# A conversation without an end in the file is cut here, so that it can be shuffled with others.
MAX_LINES = 60


@dataclass(frozen=True, slots=True)
class Line:
    """One thing somebody says; `is_first` where the file itself begins a conversation with it."""

    name: str
    text: str
    is_first: bool = False
    at: datetime | None = None


def dialogues_of(lines: Sequence[Line], reading: Reading, *, has_default: bool) -> Iterator[Dialogue]:
    """Cut `lines` into dialogues in which `reading.speaker` is the bot.

    With `has_default` the second of exactly two speakers is the bot where none is named.
    Raise `UnknownSpeaker` where the speaker must be named, or says nothing in the file.
    """
    counts = Counter(line.name for line in lines)
    speaker = _speaker(counts, reading, has_default=has_default)
    facts = (f"My name is {speaker}.",)
    for group in _conversations(lines):
        turns = tuple(
            Turn(Role.BOT, line.text) if line.name == speaker else Turn(Role.USER, line.text, line.name, line.name)
            for line in group
        )
        if any(turn.role is Role.BOT for turn in turns):
            yield Dialogue(facts, turns, name=speaker)


def _speaker(counts: Counter[str], reading: Reading, *, has_default: bool) -> str:
    if not counts:
        raise DataError(f"{reading.path}: nobody says anything in it")
    names = list(counts)
    wanted = " ".join(reading.speaker.split()).casefold()
    if not wanted and has_default and len(names) == 2:
        return names[1]
    found = [name for name in names if name.casefold() == wanted]
    if found:
        return found[0]
    common = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    why = f"nobody in it is called {reading.speaker!r}." if wanted else "whose lines shall the bot learn?"
    raise UnknownSpeaker(reading.path, why, common)


def _conversations(lines: Iterable[Line]) -> Iterator[list[Line]]:
    group: list[Line] = []
    for line in lines:
        has_paused = bool(group and line.at and group[-1].at and line.at - group[-1].at > MAX_GAP)
        if group and (line.is_first or has_paused or len(group) >= MAX_LINES):
            yield group
            group = []
        group.append(line)
    if group:
        yield group
