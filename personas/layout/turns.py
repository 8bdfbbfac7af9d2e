"""Turns before they are tokens: whose messages are joined, and which turns are kept when not all fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from personas.conversation import Role, Turn

MAX_NAME_CHARS = 32
# Cutting down to three quarters at a time keeps the start of the prompt, and so a cached prefix, for many turns.
KEPT_SHARE = 0.75


def merged(turns: Sequence[Turn]) -> Iterable[tuple[Role, str]]:
    """Join each speaker's messages in a row with newlines; where several people talk, put their names first."""
    people = {turn.author_id or turn.name for turn in turns if turn.role is Role.USER}
    for (role, _), group in itertools.groupby(
        turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else "")
    ):
        same = list(group)
        text = "\n".join(turn.text.strip() for turn in same)
        name = " ".join(same[0].name.split())[:MAX_NAME_CHARS].rstrip(": ")
        yield role, f"{name}: {text}" if role is Role.USER and len(people) > 1 and name else text


def first_kept(lengths: Sequence[int], budget: int, *, kept_share: float = KEPT_SHARE) -> int:
    """Return the index of the first block to keep so that the kept ones fit `budget`; the last is always kept.

    Blocks are counted as they came. On overflow the oldest go until `kept_share` of the budget is left, so the
    answer stays the same for several turns, and with it the beginning of the prompt.
    """
    start = total = 0
    for index, length in enumerate(lengths):
        total += length
        if total > budget:
            while start < index and total > budget * kept_share:
                total -= lengths[start]
                start += 1
    return start


def merged_counts(turns: Sequence[Turn]) -> list[int]:
    """Return how many turns each merged one is made of."""
    groups = itertools.groupby(turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else ""))
    return [len(list(group)) for _, group in groups]


def num_turns_before(turns: Sequence[Turn], num_blocks: int) -> int:
    """Count the turns in the first `num_blocks` merged blocks."""
    return sum(merged_counts(turns)[:num_blocks])
