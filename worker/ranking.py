"""Which of several replies is said: likelihood, less what it repeats. Pure functions over texts and numbers.

A next-utterance head, where a checkpoint has one, takes part through `Ranker`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from personas.conversation import Role, Turn

# Set by hand; what candidates are worth with them is in docs/log.md.
WEIGHT_OWN_WORDS = 2.0  # for saying what it said already
WEIGHT_PERSONS_WORDS = 1.0  # for parroting the person
WEIGHT_WITHIN = 2.0  # for repeating itself within one reply
NGRAM_SIZE = 3
NUM_OWN_TURNS = 5  # so many of its last replies count
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class Ranker(Protocol):
    """Says how well each of several whole sequences (prompt and reply, in ids) continues: a higher score is better."""

    def scores(
        self, sequences: Sequence[Sequence[int]], *, ends: float | None = None, group: tuple[str, str] = ("", "")
    ) -> list[float]:
        """Return a score for each by `ends`, on the monotonic clock; `group` is whose turn it takes (see `Request`)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One reply: its text, its mean log-probability per token in nats, and a ranker's score where there is one."""

    text: str
    log_prob: float
    fit: float = 0.0


def best(candidates: Sequence[Candidate], turns: Sequence[Turn]) -> int:
    """Return the index of the reply to say after `turns`: of equals the first, an empty one only among empty ones."""
    return max(
        range(len(candidates)), key=lambda index: (bool(candidates[index].text), score(candidates[index], turns))
    )


def score(candidate: Candidate, turns: Sequence[Turn]) -> float:
    """Likelihood and fit, less the shares of the reply's n-grams that are repetition, weighted."""
    grams = ngrams(candidate.text)
    own = [turn.text for turn in turns if turn.role is Role.BOT][-NUM_OWN_TURNS:]
    asked = [turn.text for turn in turns if turn.role is Role.USER][-1:]
    return (
        candidate.log_prob
        + candidate.fit
        - WEIGHT_OWN_WORDS * shared(grams, own)
        - WEIGHT_PERSONS_WORDS * shared(grams, asked)
        - WEIGHT_WITHIN * repeated(grams)
    )


def ngrams(text: str, size: int = NGRAM_SIZE) -> list[tuple[str, ...]]:
    """Return the runs of `size` words, lower case and without punctuation; a shorter text is one run of its own."""
    words = _WORD.findall(text.casefold())
    if not words:
        return []
    return [tuple(words[start : start + size]) for start in range(max(len(words) - size + 1, 1))]


def shared(grams: Sequence[tuple[str, ...]], texts: Sequence[str]) -> float:
    """Return the share of `grams` that occur in one of `texts`."""
    known = {gram for text in texts for gram in ngrams(text)}
    return sum(gram in known for gram in grams) / max(len(grams), 1)


def repeated(grams: Sequence[tuple[str, ...]]) -> float:
    """Return the share of `grams` that occurred before within the same reply."""
    return 1.0 - len(set(grams)) / max(len(grams), 1) if grams else 0.0
