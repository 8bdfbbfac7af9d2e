"""The work that every engine is given: conversations whose prompts grow, and what came of them in figures.

A persona of 55–65 tokens, messages of 5–60, replies of 10–40, prompts of at most 250. A conversation sends its next
message when it has read the reply, so at most as many requests are open as there are conversations. Knows no engine;
also read by processes that have other packages than ours.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
MAX_PROMPT_TOKENS = 250
MAX_NEW_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: the whole prompt, and how many tokens are to be generated."""

    prompt_ids: tuple[int, ...]
    num_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine did with one list of conversations."""

    total_s: float
    latencies_s: tuple[float, ...]
    num_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all conversations per second."""
        return self.num_tokens / self.total_s


@dataclass(frozen=True, slots=True)
class Figures:
    """The medians over the rounds."""

    tokens_per_s: float
    replies_per_s: float
    p50_s: float
    p95_s: float


Conversations = Sequence[Sequence[Turn]]
Play = Callable[[Conversations], Run]


def conversations(
    allowed: Sequence[int], *, window: int, number: int, num_turns: int, seed: int = 7
) -> list[list[Turn]]:
    """Make up conversations of tokens drawn from `allowed` for a model that reads `window` tokens."""
    draw = random.Random(seed)
    longest = min(MAX_PROMPT_TOKENS, window - MAX_NEW_TOKENS)
    made = []
    for _ in range(number):
        ids = draw.choices(allowed, k=draw.randint(55, 65) + draw.randint(5, 40))
        turns = []
        for _ in range(num_turns):
            turns.append(Turn(tuple(ids[:longest]), draw.randint(10, MAX_NEW_TOKENS), draw.getrandbits(32)))
            ids = ids + draw.choices(allowed, k=draw.randint(12, 60))
        made.append(turns)
    return made


class Talks:
    """Conversations under way: hands out each one's next turn, and notes when its reply came."""

    def __init__(self, talks: Conversations) -> None:
        self._queues = [deque(turns) for turns in talks]
        self._sent: dict[int, float] = {}
        self._latencies: list[float] = []
        self._num_tokens = 0
        self._started = time.perf_counter()

    def opening(self) -> list[tuple[int, Turn]]:
        """Return every conversation's number and first turn; all are sent at once."""
        return [(talk, turn) for talk in range(len(self._queues)) for turn in self._next(talk)]

    def answered(self, talk: int, num_tokens: int) -> Iterable[tuple[int, Turn]]:
        """Note the reply of conversation `talk`; return its next turn, if there is one."""
        self._latencies.append(time.perf_counter() - self._sent[talk])
        self._num_tokens += num_tokens
        return [(talk, turn) for turn in self._next(talk)]

    def run(self) -> Run:
        """Return what was measured."""
        return Run(time.perf_counter() - self._started, tuple(self._latencies), self._num_tokens)

    def _next(self, talk: int) -> list[Turn]:
        self._sent[talk] = time.perf_counter()
        return [self._queues[talk].popleft()] if self._queues[talk] else []


def figures(runs: Collection[Run]) -> Figures:
    """Summarise the rounds of one engine at one concurrency."""

    def middle(value: Callable[[Run], float]) -> float:
        return round(statistics.median(value(run) for run in runs), 3)

    return Figures(
        tokens_per_s=middle(lambda run: run.tokens_per_s),
        replies_per_s=middle(lambda run: len(run.latencies_s) / run.total_s),
        p50_s=middle(lambda run: percentile(run.latencies_s, 0.5)),
        p95_s=middle(lambda run: percentile(run.latencies_s, 0.95)),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]
