"""Which wrong replies stand beside the right one in training. Pure functions of their arguments and a seeded generator.

The data's own candidates come first. Else they are drawn: mostly from other dialogues, one in four hard, which is a
reply of the same persona in another place, or the one of several that shares the most words with what was just said.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from personas.conversation import Role
from personas.layout import merged
from trainer.augment import spaced
from trainer.formats import Dialogue

HARD_SHARE = 0.25
# A reply so many turns away was given in another context.
FAR_TURNS = 5
# How many are looked at for the one with the most words in common.
NUM_LOOKED_AT = 8
TRIES_PER_CANDIDATE = 20


def plain(text: str) -> str:
    """Return the words of `text` alone: what counts as the same reply, whatever its case, spaces and signs."""
    return " ".join(re.findall(r"\w+", text.lower()))


def wrong_replies(
    dialogue: Dialogue, turn: int, others: Sequence[Dialogue], role: Role, *, number: int, rng: random.Random
) -> tuple[str, ...]:
    """Return `number` replies that are not the one at `turn` of the merged turns, or fewer where there are no more.

    `others` are dialogues as they were read; their turns of `role` are the bot's. None returned says the same as the
    right reply or another of them.
    """
    spoken = list(merged(dialogue.turns))
    right = spoken[turn][1]
    known = {plain(right)}
    found: list[str] = []
    has_spaces = all(spaced(text) == text for _, text in spoken)
    for text in islice(_offered(dialogue, spoken, turn, others, role, rng), number * TRIES_PER_CANDIDATE):
        if len(found) == number:
            break
        words = plain(text)
        if words and words not in known:
            known.add(words)
            # In the manner of this dialogue, or the manner would tell right from wrong.
            found.append(spaced(text) if has_spaces else text)
    return tuple(found)


def _offered(
    dialogue: Dialogue,
    spoken: Sequence[tuple[Role, str]],
    turn: int,
    others: Sequence[Dialogue],
    role: Role,
    rng: random.Random,
) -> Iterator[str]:
    right = plain(spoken[turn][1])
    stored = [text for choice in dialogue.choices if plain(choice.reply) == right for text in choice.wrong]
    yield from rng.sample(stored, len(stored))
    far = [text for at, (r, text) in enumerate(spoken) if r is Role.BOT and abs(at - turn) >= FAR_TURNS]
    said = set(plain(spoken[turn - 1][1]).split()) if turn else set()
    while True:
        if rng.random() >= HARD_SHARE:
            yield _any(others, role, rng)
        elif far:
            yield rng.choice(far)
        else:
            some = [_any(others, role, rng) for _ in range(NUM_LOOKED_AT)]
            yield max(some, key=lambda text: len(said & set(plain(text).split())))


def _any(others: Sequence[Dialogue], role: Role, rng: random.Random) -> str:
    texts = [turn.text for turn in rng.choice(others).turns if turn.role is role]
    return rng.choice(texts) if texts else ""
