"""The one shape every data file is read into, and what a reader is told beside the path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from personas.conversation import Role, Turn
from personas.errors import PersonabotError


class DataError(PersonabotError):
    """A data file is not what its format says; names file, line and the expected shape."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A reply of the bot's and the wrong ones that the data offers beside it."""

    reply: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue from the bot's side. `partner_facts` are the other speaker's, where the data has them.

    `name` is the bot's own name where the data states it apart from the facts. `choices` are the candidates of the
    bot's turns, where the data has them. `untrained` are the indices of turns that carry no loss.
    """

    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    partner_facts: tuple[str, ...] = ()
    name: str = ""
    partner_name: str = ""
    choices: tuple[Choice, ...] = ()
    untrained: frozenset[int] = frozenset()

    def flipped(self) -> Dialogue:
        """Return the same dialogue from the other speaker's side; candidates are the bot's and stay behind."""
        swap = {Role.USER: Role.BOT, Role.BOT: Role.USER}
        turns = tuple(replace(turn, role=swap[turn.role]) for turn in self.turns)
        return Dialogue(self.partner_facts, turns, self.facts, self.partner_name, self.name, untrained=self.untrained)


@dataclass(frozen=True, slots=True)
class Reading:
    """A file and how to read it: `speaker` is whose lines the bot learns, `split` which part of a file with several."""

    path: Path
    speaker: str = ""
    split: str = "train"


def turns_of(pairs: Sequence[tuple[int, str]]) -> tuple[Turn, ...]:
    """Make turns of (speaker 1 or 2, text); speaker 2 is the bot. Empty ones go."""
    return tuple(Turn(Role.BOT if s == 2 else Role.USER, text.strip()) for s, text in pairs if text.strip())


def strings(value: object) -> tuple[str, ...]:
    """Return a list of texts as a tuple; raise TypeError for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"expected a list of texts, got {str(value)[:40]!r}")
    return tuple(value)
