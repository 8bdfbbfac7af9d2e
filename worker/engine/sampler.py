"""Chooses the next token of each sequence from its scores: filters as those of `transformers`, then a draw of its own.

Works on a whole batch, in which every sequence has parameters of its own. Keeps no state between steps; the result for
a sequence doesn't depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from worker.engine.beam import Continuation, num_looked_at
from worker.engine.noise import gumbel
from worker.engine.processors import NO_SCORE, add_biases, forbid, penalise_repetition
from worker.engine.rejection import draw_by_rejection, relative
from worker.engine.request import SamplingParams
from worker.engine.request import Sequence as Running

# Where tokens are sorted, so many of the best nearly always hold what is kept; where they don't, more are looked at.
# Of 49,152 tokens finding 256 took 2 ms for 16 rows, 4,096 took 13 ms, and sorting all of them 76 ms.
NUM_CANDIDATES = (256, 4096)


class Token(NamedTuple):
    """A chosen token, and where the request wants it the model's own log-probability of it."""

    id: int
    log_prob: float


class Fit(NamedTuple):
    """How well a prompt's end continues it: what a request without a reply wants instead of a token."""

    value: float


Choice = Token | Fit | list[Continuation] | None


class Sampler:
    """Knows the tokens that may never be chosen, and those that end a reply."""

    def __init__(
        self, *, banned_ids: Iterable[int] = (), stop_ids: Iterable[int] = (), device: torch.device | str = "cpu"
    ) -> None:
        self._device = torch.device("cpu" if torch.device(device).type == "mps" else device)  # mps has no float64
        self._banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=self._device)
        self._stop_ids = frozenset(stop_ids)

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequences: Sequence[Running], fits: Tensor | None = None) -> list[Choice]:
        """Choose from logits (B, V): a token for each sequence, or for a beam its best continuations.

        Who wants a fit only gets that of `fits` (B,).
        """
        choices: list[Choice] = [None] * len(sequences)
        if fits is not None and any(sequence.request.wants_fit for sequence in sequences):
            choices = [
                Fit(value) if s.request.wants_fit else None for s, value in zip(sequences, fits.tolist(), strict=True)
            ]
        replies = [row for row, choice in enumerate(choices) if choice is None]
        beams = [row for row in replies if sequences[row].params.num_beams > 1]
        rest = [row for row in replies if row not in beams]
        if rest:
            own = logits if len(rest) == len(sequences) else logits[rest]
            chosen = self.sample(own, [sequences[row] for row in rest])
            log_probs = self._log_probs(own, chosen, [sequences[row].request.wants_log_prob for row in rest])
            for row, token, log_prob in zip(rest, chosen, log_probs, strict=True):
                choices[row] = None if token is None else Token(token, log_prob)
        if beams:
            for row, offered in zip(
                beams, self.continuations(logits[beams], [sequences[r] for r in beams]), strict=True
            ):
                choices[row] = offered
        return choices

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: Sequence[Running]) -> list[int | None]:
        """Choose the next token of each sequence from logits (B, V); None where no token has a finite score."""
        if not sequences:
            return []
        scores = self.processed(logits.to(self._device), sequences)
        sampled = [row for row, sequence in enumerate(sequences) if sequence.params.do_sample]
        if len(sampled) == len(sequences):
            chosen = draw(scores, sequences)
        else:
            chosen = scores.argmax(-1)
            if sampled:
                chosen[sampled] = draw(scores[sampled], [sequences[row] for row in sampled])
        best = scores.gather(1, chosen[:, None])[:, 0]
        return [
            token if is_finite else None
            for token, is_finite in zip(chosen.tolist(), best.isfinite().tolist(), strict=True)
        ]

    @torch.inference_mode()
    def continuations(self, logits: Tensor, sequences: Sequence[Running]) -> list[list[Continuation] | None]:
        """Return the best next tokens of each beam from logits (B, V); None where the best one's score is not finite.

        As in `generate`, penalties and bans apply to log-probabilities here.
        """
        scores = self.processed(logits.to(self._device).float().log_softmax(-1), sequences)
        num_best = max(num_looked_at(sequence.params.num_beams, self._stop_ids) for sequence in sequences)
        best, ids = scores.topk(min(num_best, scores.shape[1]))
        return [
            list(zip(tokens, row, strict=True)) if math.isfinite(row[0]) else None
            for tokens, row in zip(ids.tolist(), best.tolist(), strict=True)
        ]

    def processed(self, logits: Tensor, sequences: Sequence[Running]) -> Tensor:
        """Return logits (B, V) after biases, penalties and bans, before temperature and filters."""
        scores = logits.float().clone()
        add_biases(scores, sequences)
        penalise_repetition(scores, sequences)
        forbid(scores, sequences, self._stop_ids)
        scores[:, self._banned] = NO_SCORE
        return scores

    def _log_probs(self, logits: Tensor, tokens: Sequence[int | None], is_wanted: Sequence[bool]) -> list[float]:
        """The model's own log-probabilities of `tokens`, 0.0 where they are not wanted."""
        rows = [row for row, wanted in enumerate(is_wanted) if wanted and tokens[row] is not None]
        found = [0.0] * len(tokens)
        if rows:
            own = logits[rows].float().log_softmax(-1)
            ids = torch.tensor([[tokens[row]] for row in rows], device=own.device)
            for row, log_prob in zip(rows, own.gather(1, ids)[:, 0].tolist(), strict=True):
                found[row] = log_prob
        return found


def draw(scores: Tensor, sequences: Sequence[Running]) -> Tensor:
    """Draw a token per row of scores (B, V): temperature, filters, then the sequence's own noise."""
    params = [sequence.params for sequence in sequences]
    scores = scores / torch.tensor([[p.temperature] for p in params], device=scores.device)
    chosen = torch.empty(len(params), dtype=torch.long, device=scores.device)
    keys, positions = [s.noise_key for s in sequences], [s.num_new_tokens for s in sequences]
    unsorted = [row for row, p in enumerate(params) if not needs_order(p)]
    ordered = [*range(len(params))]
    if unsorted:
        own = scores if len(unsorted) == len(params) else scores[unsorted]
        chosen[unsorted], is_open = draw_by_rejection(
            relative(own),
            [params[row] for row in unsorted],
            [keys[row] for row in unsorted],
            [positions[row] for row in unsorted],
        )
        drawn = {row for row, still_open in zip(unsorted, is_open, strict=True) if not still_open}
        ordered = [row for row in ordered if row not in drawn]
    own = scores if len(ordered) == len(params) else scores[ordered]
    for places, ids, kept in filtered(own, [params[row] for row in ordered]):
        rows = [ordered[place] for place in places]
        noise = gumbel([keys[row] for row in rows], [positions[row] for row in rows], ids)
        best = (kept.double() + noise).argmax(-1)
        chosen[rows] = ids.gather(1, best[:, None])[:, 0]
    return chosen


def needs_order(params: SamplingParams) -> bool:
    """Whether a filter asks how many tokens are likelier than one, or how typical each is."""
    return params.top_k > 0 or params.typical_p < 1.0


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield rows of scores (B, V) in groups: their numbers, token ids and scores, those filtered out at -inf."""
    for rows, ids, kept in _sharpened(scores, params):
        yield rows, ids, keep_typical(kept, [params[row].typical_p for row in rows])


def _sharpened(scores: Tensor, params: Sequence[SamplingParams]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """What top_k, top_p and min_p leave of each row, looking at as few of the best tokens as will do."""
    unfiltered = [row for row, p in enumerate(params) if p.top_p >= 1.0 and p.top_k == 0 and p.min_p == 0.0]
    if unfiltered:
        own = scores[unfiltered]
        yield unfiltered, torch.arange(own.shape[1], device=own.device).expand(own.shape), own
    rest = [row for row in range(len(params)) if row not in unfiltered]
    for num_candidates in (*NUM_CANDIDATES, scores.shape[1]):
        if not rest:
            return
        ids, kept, is_whole = candidates(scores[rest], [params[row] for row in rest], num_candidates)
        whole = [row for row, value in zip(rest, is_whole, strict=True) if value]
        if whole:
            yield whole, ids[is_whole], kept[is_whole]
        rest = [row for row, value in zip(rest, is_whole, strict=True) if not value]


def candidates(
    scores: Tensor, params: Sequence[SamplingParams], num_candidates: int
) -> tuple[Tensor, Tensor, list[bool]]:
    """Return the best tokens of scores (B, V), their scores after top_k, top_p and min_p, and whether these are all.

    Where they are not, the filters would keep tokens beyond the `num_candidates` best ones.
    """
    size = scores.shape[1]
    num_candidates = min(num_candidates, size)
    best, ids = torch.sort(scores, descending=True) if num_candidates == size else scores.topk(num_candidates)
    top_k = torch.tensor([min(p.top_k or size, size) for p in params], device=scores.device)
    top_p = torch.tensor([p.top_p for p in params], device=scores.device)
    least = best.gather(1, top_k.clamp(max=num_candidates)[:, None] - 1)
    has_top_k = (top_k < size)[:, None]
    kept = best.masked_fill(has_top_k & (best < least), NO_SCORE)
    total = torch.where(has_top_k[:, 0], kept.logsumexp(-1), scores.logsumexp(-1))
    shares = (kept - total[:, None]).exp()
    before = shares.cumsum(-1) - shares
    kept = kept.masked_fill((top_p < 1.0)[:, None] & (before >= top_p[:, None]), NO_SCORE)
    # A share of the best token's probability is a distance from its score, whatever was filtered out before.
    floor = best[:, :1] + torch.tensor([[_log(p.min_p)] for p in params], device=scores.device)
    kept = kept.masked_fill(kept < floor, NO_SCORE)
    is_within_k = has_top_k[:, 0] & (top_k < num_candidates) & (least[:, 0] > best[:, -1])
    is_within_p = ~has_top_k[:, 0] & (top_p < 1.0) & (shares.sum(-1) >= top_p)
    is_within_floor = ~has_top_k[:, 0] & (best[:, -1] < floor[:, 0])
    is_whole = is_within_k | is_within_p | is_within_floor
    if num_candidates == size:
        is_whole = torch.ones_like(is_whole)
    width = int((kept > NO_SCORE).sum(-1).max().clamp(min=1))  # what is filtered out needs no noise
    return ids[:, :width], kept[:, :width], is_whole.tolist()


def keep_typical(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """Keep the tokens whose surprise is nearest to the expected one, up to each row's share: scores (B, K) → (B, K).

    Locally typical sampling (Meister et al. 2022, arXiv:2202.00666), as `TypicalLogitsWarper` computes it.
    """
    rows = [row for row, share in enumerate(shares) if share < 1.0]
    if not rows:
        return scores
    own = scores[rows]
    log_probs = own.log_softmax(-1)
    entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
    distances, order = (-log_probs - entropy).abs().sort(-1)
    sums = log_probs.exp().gather(-1, order).cumsum(-1)
    mass = torch.tensor([[shares[row]] for row in rows], device=scores.device)
    last = (sums < mass).sum(-1, keepdim=True).clamp(max=own.shape[1] - 1)
    is_far = distances > distances.gather(-1, last)
    is_far[:, 0] = False
    kept = scores.clone()
    kept[rows] = own.masked_fill(torch.zeros_like(is_far).scatter(-1, order, is_far), NO_SCORE)
    return kept


def _log(share: float) -> float:
    return math.log(share) if share > 0.0 else NO_SCORE
