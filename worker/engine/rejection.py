"""Draws without sorting: draw a token from all, and again while top_p or min_p drops it.

What is kept has the distribution that they leave, as dropping is all they do. For 16 rows of 50,257 nearly even tokens
sorting took 85 ms on one core, and this 6; for 16 of the default model's replies finding the best tokens took 5 ms, and
this 1. Every row is drawn by its own noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.noise import uniform
from worker.engine.request import SamplingParams

# After so many tokens in vain a row is left to whoever sorts; with top_p 0.9 that is one row in 10^16.
MAX_ATTEMPTS = 16
TINY = torch.finfo(torch.float32).tiny


def relative(scores: Tensor) -> Tensor:
    """How likely each token of scores (B, V) is, as a share of the likeliest one's likelihood."""
    return (scores - scores.amax(-1, keepdim=True)).exp_()


def draw_by_rejection(
    weights: Tensor, params: Sequence[SamplingParams], keys: Sequence[int], positions: Sequence[int]
) -> tuple[Tensor, list[bool]]:
    """Draw a token per row of weights (B, V), as `relative` makes them; also return which rows got none.

    Honours top_p and min_p. Row b's noise is that of `keys[b]` at `positions[b]`.
    """
    top_p = torch.tensor([p.top_p for p in params], device=weights.device)
    # A GPU rounds each sum by itself: a search in them may hit a token that weighs nothing, because it is forbidden.
    min_p = torch.tensor([p.min_p or TINY for p in params], device=weights.device)
    sums = weights.cumsum(-1)  # in float64 ten times as long
    totals = sums[:, -1]
    attempts = torch.arange(MAX_ATTEMPTS, device=weights.device).expand(len(params), -1)
    drawn = torch.searchsorted(sums, (uniform(keys, positions, attempts) * totals[:, None]).to(sums.dtype))
    drawn.clamp_(max=weights.shape[1] - 1)
    chosen, is_open = drawn[:, 0].clone(), torch.ones_like(totals, dtype=torch.bool)
    for tokens in drawn.unbind(1):
        rows = is_open.nonzero()[:, 0]
        if not len(rows):
            break
        own = weights if len(rows) == len(weights) else weights[rows]
        weight = own.gather(1, tokens[rows, None])
        # The share of likelier tokens; `where` would take twenty times as long.
        before = torch.gt(own, weight, out=torch.empty_like(own)).mul_(own).sum(-1)
        is_kept = ((top_p[rows] >= 1.0) | (before < top_p[rows] * totals[rows])) & (weight[:, 0] >= min_p[rows])
        chosen[rows[is_kept]] = tokens[rows[is_kept]]
        is_open[rows[is_kept]] = False
    return chosen, is_open.tolist()
