"""What a layout makes of turns: prompts for serving, blocks and examples for training. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Part(IntEnum):
    """What a token is for the loss: not predicted, the text of a turn, or the token that ends it."""

    CONTEXT = 0
    TEXT = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that end where the reply begins, and what had to be left out to fit the window.

    `types` are the token types of the ids, where the layout has them; a reply goes on with the last one.
    """

    ids: list[int]
    num_dropped_turns: int = 0
    num_dropped_facts: int = 0
    is_last_turn_cut: bool = False
    types: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One encoded turn: ids with the `Part` of each."""

    ids: list[int]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a reply of the bot's stands in an example: its first token, its end token, its turn among the merged."""

    start: int
    stop: int
    turn: int


@dataclass(frozen=True, slots=True)
class Example:
    """A training sequence: ids, and the `Part` that each plays (CONTEXT carries no loss).

    `texts` are the bot's texts that are targets in it, `replies` where each of them stands.
    """

    ids: list[int]
    parts: list[Part]
    texts: tuple[str, ...] = ()
    replies: tuple[Span, ...] = ()
