"""The one shape every data file is read into, what a reader is told beside the path, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from personas.conversation import Role, Turn
from personas.errors import PersonabotError

NUM_SHOWN: Final = 3  # rejected lines that are described, the first ones


class DataError(PersonabotError):
    """A data file is not what its format says; names file, line and the expected shape."""


class UnknownSpeaker(DataError):
    """Whose lines the bot learns was not said, or nobody is called so: `why`. `there` names who speaks, how often."""

    def __init__(self, path: Path, why: str, there: str) -> None:
        super().__init__(f"{path}: {why} Name one with --speaker (or --me): {there}")
        self.why, self.there = why, there


@dataclass(frozen=True, slots=True)
class Choice:
    """A reply of the bot's and the wrong ones that the data offers beside it."""

    reply: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue from the bot's side. `partner_facts` are the other speaker's, where the data has them.

    `name` is the bot's own name where the data states it apart from the facts. `choices` are the candidates of the
    bot's turns, where the data has them. `untrained` are the indices of turns that carry no loss. `has_roles` where
    the data itself says who is the bot, by a role.
    """

    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    partner_facts: tuple[str, ...] = ()
    name: str = ""
    partner_name: str = ""
    choices: tuple[Choice, ...] = ()
    untrained: frozenset[int] = frozenset()
    has_roles: bool = False

    @property
    def has_two_sides(self) -> bool:
        """Whether the other speaker's turns are worth learning, too: with that one's facts, or in a talk of nobodies.

        Where only the bot is somebody (it has facts, a name or a role, or some turns are not to be learnt), the other
        speaker's turns are none of the bot's.
        """
        is_somebody = bool(self.facts or self.name or self.has_roles or self.untrained)
        has_other = any(turn.role is Role.USER for turn in self.turns)
        return has_other and (bool(self.partner_facts) or not is_somebody)

    def flipped(self) -> Dialogue:
        """Return the same dialogue from the other speaker's side; candidates are the bot's and stay behind."""
        swap = {Role.USER: Role.BOT, Role.BOT: Role.USER}
        turns = tuple(replace(turn, role=swap[turn.role]) for turn in self.turns)
        return Dialogue(self.partner_facts, turns, self.facts, self.partner_name, self.name, untrained=self.untrained)


@dataclass(slots=True)
class Rejected:
    """Lines of a file that cannot be read and were left out: how many of how many, and what is wrong with the first."""

    num: int = 0
    num_lines: int = 0
    first: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of lines that were rejected, from 0 to 1."""
        return self.num / max(self.num_lines, self.num, 1)


@dataclass(frozen=True, slots=True)
class Reading:
    """A file and how to read it: `speaker` is whose lines the bot learns, `split` which part of a file with several.

    With `rejected`, a line that cannot be read is counted there and left out; without, it refuses the whole file.
    """

    path: Path
    speaker: str = ""
    split: str = "train"
    rejected: Rejected | None = None

    @contextmanager
    def rejecting(self) -> Iterator[None]:
        """Leave out what raises `DataError` in the block, where that is wanted."""
        try:
            yield
        except DataError as error:
            if self.rejected is None:
                raise
            self.rejected.num += 1
            if len(self.rejected.first) < NUM_SHOWN:
                self.rejected.first.append(str(error).removeprefix(f"{self.path}: "))

    def count(self) -> None:
        """Count one line, or one entry of a file that has no lines."""
        if self.rejected is not None:
            self.rejected.num_lines += 1


def turns_of(pairs: Sequence[tuple[int, str]]) -> tuple[Turn, ...]:
    """Make turns of (speaker 1 or 2, text); speaker 2 is the bot. Empty ones go."""
    return tuple(Turn(Role.BOT if s == 2 else Role.USER, text.strip()) for s, text in pairs if text.strip())


def strings(value: object) -> tuple[str, ...]:
    """Return a list of texts as a tuple; raise TypeError for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"expected a list of texts, got {str(value)[:40]!r}")
    return tuple(value)
