"""Chooses the next token of each sequence from its scores: the processors and filters of `transformers`, in its order.

Works on a whole batch, in which every sequence has parameters of its own. Keeps no state between steps; the result for
a sequence doesn't depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from worker.engine.noise import gumbel
from worker.engine.request import SamplingParams
from worker.engine.request import Sequence as Running

NO_SCORE = float("-inf")
# So many of the best tokens nearly always hold what top_p and top_k keep; where they don't, more are looked at.
# Of 49,152 tokens finding 256 took 2 ms for 16 rows, 4,096 took 13 ms, and sorting all of them 76 ms.
NUM_CANDIDATES = (256, 4096)


class Sampler:
    """Knows the tokens that may never be chosen, and those that end a reply."""

    def __init__(
        self, *, banned_ids: Iterable[int] = (), stop_ids: Iterable[int] = (), device: torch.device | str = "cpu"
    ) -> None:
        self._device = torch.device("cpu" if torch.device(device).type == "mps" else device)  # mps has no float64
        self._banned = torch.tensor(sorted(banned_ids), dtype=torch.long, device=self._device)
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self._device)

    @torch.inference_mode()
    def sample(self, logits: Tensor, sequences: Sequence[Running]) -> list[int | None]:
        """Choose the next token of each sequence from logits (B, V); None where no token has a finite score."""
        if not sequences:
            return []
        scores = self.processed(logits.to(self._device), sequences)
        chosen = scores.argmax(-1)
        sampled = [row for row, sequence in enumerate(sequences) if sequence.params.do_sample]
        if sampled:
            rows = scores if len(sampled) == len(sequences) else scores[sampled]
            chosen[sampled] = draw(rows, [sequences[row] for row in sampled])
        best = scores.gather(1, chosen[:, None])[:, 0]
        return [
            token if is_finite else None
            for token, is_finite in zip(chosen.tolist(), best.isfinite().tolist(), strict=True)
        ]

    def processed(self, logits: Tensor, sequences: Sequence[Running]) -> Tensor:
        """Return logits (B, V) after penalties and bans, before temperature and filters."""
        scores = logits.float().clone()
        penalise_repetition(scores, sequences)
        for row, sequence in enumerate(sequences):
            if sequence.params.no_repeat_ngram_size:
                scores[row, repeating_ids(sequence.ids, sequence.params.no_repeat_ngram_size)] = NO_SCORE
            if sequence.num_new_tokens < sequence.params.min_new_tokens:
                scores[row, self._stops] = NO_SCORE
        scores[:, self._banned] = NO_SCORE
        return scores


def penalise_repetition(scores: Tensor, sequences: Sequence[Running]) -> None:
    """Divide positive and multiply negative scores of tokens that occur in prompt or reply, in place."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.params.repetition_penalty != 1.0]
    if not rows:
        return
    longest = max(len(sequences[row].ids) for row in rows)
    # Padding with a token that is there anyway changes nothing: every copy of it writes the same score.
    ids = torch.tensor(
        [sequences[row].ids + sequences[row].ids[:1] * (longest - len(sequences[row].ids)) for row in rows],
        device=scores.device,
    )
    penalties = torch.tensor([[sequences[row].params.repetition_penalty] for row in rows], device=scores.device)
    own = scores[rows]
    seen = own.gather(1, ids)
    scores[rows] = own.scatter(1, ids, torch.where(seen < 0, seen * penalties, seen / penalties))


def repeating_ids(ids: Sequence[int], size: int) -> list[int]:
    """The tokens that would complete an n-gram of `size` tokens that occurs in `ids` already."""
    first = len(ids) + 1 - size
    if first < 0:
        return []
    start = list(ids[first:])
    return [ids[i + size - 1] for i in range(first) if list(ids[i : i + size - 1]) == start]


def draw(scores: Tensor, sequences: Sequence[Running]) -> Tensor:
    """Draw a token per row of scores (B, V): temperature, top_k and top_p, then the sequence's own noise."""
    params = [sequence.params for sequence in sequences]
    scores = scores / torch.tensor([[p.temperature] for p in params], device=scores.device)
    chosen = torch.empty(len(params), dtype=torch.long, device=scores.device)
    for rows, ids, kept in filtered(scores, params):
        keys = [sequences[row].noise_key for row in rows]
        noise = gumbel(keys, [sequences[row].num_new_tokens for row in rows], ids)
        best = (kept.double() + noise).argmax(-1)
        chosen[rows] = ids.gather(1, best[:, None])[:, 0]
    return chosen


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield rows of scores (B, V) in groups: their numbers, token ids and scores, those filtered out at -inf."""
    unfiltered = [row for row, p in enumerate(params) if p.top_p >= 1.0 and p.top_k == 0]
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
    """Return the best tokens of scores (B, V) and their scores after top_k and top_p, and whether these are all.

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
    is_within_k = has_top_k[:, 0] & (top_k < num_candidates) & (least[:, 0] > best[:, -1])
    is_within_p = ~has_top_k[:, 0] & (top_p < 1.0) & (shares.sum(-1) >= top_p)
    is_whole = is_within_k | is_within_p if num_candidates < size else torch.ones_like(is_within_k)
    width = int((kept > NO_SCORE).sum(-1).max().clamp(min=1))  # what is filtered out needs no noise
    return ids[:, :width], kept[:, :width], is_whole.tolist()
