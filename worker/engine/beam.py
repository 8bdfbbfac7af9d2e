"""Beam search: several continuations of one prompt side by side, of which the likeliest go on.

Decides; computes nothing. The scores and the rule when to end are those of `generate` with its defaults (length
penalty 1, `early_stopping=False`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from worker.engine.request import Completion, FinishReason
from worker.engine.request import Sequence as Running

Continuation = tuple[int, float]  # a token and its log-probability


class Step(NamedTuple):
    """A beam of the next step: whose continuation it is, by which token."""

    parent: int
    token: int


class Found(NamedTuple):
    """A reply with its end token, its mean log-probability per token in nats, and whether a listener ended it."""

    score: float
    ids: tuple[int, ...]
    is_heard: bool = False


@dataclass(slots=True)
class Beam:
    """A reply so far and the sum of its log-probabilities."""

    ids: tuple[int, ...]
    score: float


class BeamSearch:
    """The beams of one request, at first one without a token."""

    def __init__(
        self,
        *,
        num_beams: int,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        is_complete: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> None:
        self.num_beams = num_beams
        self.num_looked_at = num_looked_at(num_beams, stop_ids)
        self.is_over = False
        self.beams = [Beam((), 0.0)]
        self._found: list[Found] = []
        self._can_improve = True
        self._stop_ids = stop_ids
        self._max_new_tokens = max_new_tokens
        self._is_complete = is_complete or (lambda _: False)

    def advance(self, continuations: Sequence[Sequence[Continuation]]) -> list[Step]:
        """Take the best continuations of every beam, `num_looked_at` of each; return the next beams, the best first."""
        ranked = sorted(
            (
                (beam.score + log_prob, index, token)
                for index, (beam, offered) in enumerate(zip(self.beams, continuations, strict=True))
                for token, log_prob in offered
            ),
            key=lambda entry: -entry[0],
        )[: self.num_looked_at]
        num_tokens = len(self.beams[0].ids) + 1
        is_heard = [
            token not in self._stop_ids and self._is_complete((*self.beams[index].ids, token))
            for _, index, token in ranked
        ]
        is_ended = [
            heard or token in self._stop_ids or num_tokens == self._max_new_tokens
            for heard, (_, _, token) in zip(is_heard, ranked, strict=True)
        ]
        for place, (score, index, token) in enumerate(ranked[: self.num_beams]):
            if is_ended[place] and self._can_improve:
                self._found.append(Found(score / num_tokens, (*self.beams[index].ids, token), is_heard[place]))
        self._found = sorted(self._found, key=lambda found: -found.score)[: self.num_beams]
        going = [entry for entry, ended in zip(ranked, is_ended, strict=True) if not ended][: self.num_beams]
        steps = [Step(index, token) for _, index, token in going]
        if going:
            self._can_improve &= len(self._found) < self.num_beams or going[0][0] / num_tokens > self._found[-1].score
        self.is_over = not going or not self._can_improve
        self.beams = [Beam((*self.beams[index].ids, token), score) for score, index, token in going] or self.beams
        return steps

    def best(self) -> Found:
        """Return the best complete reply, or what the best beam has where none is complete."""
        if self._found:
            return self._found[0]
        best = max(self.beams, key=lambda beam: beam.score)
        return Found(best.score / max(len(best.ids), 1), best.ids)


def num_looked_at(num_beams: int, stop_ids: frozenset[int]) -> int:
    """How many continuations a step looks at: enough to go on with where those that end are the best."""
    return max(2, 1 + len(stop_ids)) * num_beams


class BeamGroup:
    """The sequences that compute the beams of one search: the root, and one more for each further beam."""

    def __init__(self, root: Running, *, stop_ids: frozenset[int], window: int) -> None:
        self.search = BeamSearch(
            num_beams=root.params.num_beams,
            stop_ids=stop_ids,
            max_new_tokens=root.max_tokens(window) - len(root.request.prompt_ids),
            is_complete=root.request.is_complete,
        )
        self._root = root
        self._stop_ids = stop_ids
        self._sequences = [root]
        self._idle: list[Running] = []
        self._offered: dict[Running, Sequence[Continuation]] = {}

    @property
    def members(self) -> list[Running]:
        """Return all sequences, those without a beam at present among them."""
        return [*self._sequences, *self._idle]

    def completion(self, reason: FinishReason) -> Completion:
        """Describe the best reply so far, which ended for `reason` unless it has an end token or was heard out."""
        score, ids, is_heard = self.search.best()
        if ids[-1] in self._stop_ids:
            reason = FinishReason.STOP
        elif is_heard:
            reason = FinishReason.HEARD
        return self._root.completion(reason, reply=ids, mean_log_prob=score)

    def offer(self, sequence: Running, continuations: Sequence[Continuation]) -> bool:
        """Take the continuations of one beam; return whether those of all beams are here."""
        self._offered[sequence] = continuations
        return len(self._offered) == len(self._sequences)

    def advance(self, fork: Callable[[], Running]) -> list[tuple[Running, list[int]]]:
        """Go one token on. A beam's first continuation stays in its sequence, others move to sequences that are free.

        Returns which sequence is to continue which ids from now on; `fork` makes a new one where too few are free.
        """
        parents = self._sequences
        steps = self.search.advance([self._offered.pop(parent) for parent in parents])
        if self.search.is_over:
            return []
        heirs: dict[int, Step] = {}
        others = [step for step in steps if heirs.setdefault(step.parent, step) is not step]
        self._idle += [parent for index, parent in enumerate(parents) if index not in heirs]
        moves = []
        for step in others:
            sequence = self._idle.pop() if self._idle else fork()
            moves.append((sequence, [*parents[step.parent].ids, step.token]))
        movers = iter([sequence for sequence, _ in moves])
        self._sequences = [parents[step.parent] if heirs[step.parent] is step else next(movers) for step in steps]
        for index, step in heirs.items():
            parents[index].ids.append(step.token)
        return moves
