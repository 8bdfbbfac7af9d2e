"""Attention over ragged batches: the rows of many sequences side by side in one forward pass, each with its own cache.

Our own networks call `Step.attend`. For those of `transformers` it is registered under the name `ATTENTION`; there the
step travels with the forward pass as a keyword argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engine.cache import KVCache

ATTENTION = "personabot"
# What some models pass that this attention does not know: leaving it out would give wrong results quietly.
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias", "is_causal", "head_mask")


class UnsupportedModel(Exception):
    """The model does not compute attention the way this module can replace."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of one sequence in the batch: `num_tokens` from `offset`, at positions from `start` in cache row `row`."""

    offset: int
    num_tokens: int
    row: int
    start: int

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Group:
    """Single tokens of sequences in neighbouring cache rows: they share a product, padded to the longest."""

    offset: int
    first_row: int
    ends: tuple[int, ...]
    mask: Tensor

    @property
    def tokens(self) -> slice:
        """Where they lie in the batch."""
        return slice(self.offset, self.offset + len(self.ends))

    @property
    def rows(self) -> slice:
        """The rows of the cache."""
        return slice(self.first_row, self.first_row + len(self.ends))


class Step(ABC):
    """Where the tokens of one forward pass belong, and what they see."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.num_layers_seen = 0

    @abstractmethod
    def attend(self, layer: int, query: Tensor, kv: Tensor, scaling: float) -> Tensor:
        """Cache kv (T, 2, K, D) and let query (T, H, D) attend; returns (T, H * D)."""


class RaggedStep(Step):
    """Tokens of any number for each sequence: single ones first, ordered by cache row, then the longer spans."""

    def __init__(self, spans: Sequence[Span], *, rows: Tensor, positions: Tensor, cache: KVCache) -> None:
        super().__init__(cache)
        self._rows, self._positions = rows, positions
        cache.reserve(num_rows=max(s.row for s in spans) + 1, num_tokens=max(s.end for s in spans))
        self._groups = [
            Group(group[0].offset, group[0].row, ends, _past(positions[group[0].offset :][: len(ends)], max(ends)))
            for group in _neighbours([span for span in spans if span.num_tokens == 1])
            for ends in [tuple(span.end for span in group)]
        ]
        self._spans = [(span, _future(span, rows.device)) for span in spans if span.num_tokens > 1]

    def attend(self, layer: int, query: Tensor, kv: Tensor, scaling: float) -> Tensor:
        """Cache kv (T, 2, K, D) and let query (T, H, D) attend; returns (T, H * D)."""
        self.num_layers_seen += 1
        held = self.cache.write(layer, self._rows, self._positions, kv)
        query = query.to(held.dtype)
        mixed = [_attend_group(query[group.tokens], held, group, scaling) for group in self._groups]
        mixed += [_attend_span(query, held, span, future, scaling) for span, future in self._spans]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class GridStep(Step):
    """One token for each of the cache's first rows, in shapes and at addresses that do not depend on the requests.

    Token i is in row i, at positions (R,), and sees `num_tokens` at most. Rows that are not `is_used` (R,) keep what
    they hold; what is computed for them means nothing.
    """

    def __init__(self, num_tokens: int, *, positions: Tensor, is_used: Tensor, cache: KVCache) -> None:
        super().__init__(cache)
        self._rows = torch.arange(len(positions), device=positions.device)
        self._positions, self._is_used = positions, is_used
        self._group = Group(0, 0, (num_tokens,) * len(positions), _past(positions, num_tokens))

    def attend(self, layer: int, query: Tensor, kv: Tensor, scaling: float) -> Tensor:
        """Cache kv (R, 2, K, D) and let query (R, H, D) attend; returns (R, H * D)."""
        self.num_layers_seen += 1
        held = self.cache.write(layer, self._rows, self._positions, kv, is_used=self._is_used)
        return _attend_group(query.to(held.dtype), held, self._group, scaling)


def _neighbours(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Part spans, ordered by row, where a row is missing."""
    group: list[Span] = []
    for span in spans:
        if group and span.row != group[-1].row + 1:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def _past(positions: Tensor, num_tokens: int) -> Tensor:
    """What to add to the scores of tokens at positions (S,), (S, 1, L): -inf past their own."""
    return _forbidding(torch.arange(num_tokens, device=positions.device) > positions[:, None])[:, None]


def _future(span: Span, device: torch.device) -> Tensor | None:
    """What to add to the scores of `span`'s tokens, (num_tokens, end): -inf after each one's own position.

    None on a GPU for a sequence's beginning: there the kernels for prompts take no mask.
    """
    if device.type == "cuda" and span.start == 0:
        return None
    own = torch.arange(span.start, span.end, device=device)
    return _forbidding(torch.arange(span.end, device=device) > own[:, None])


def _forbidding(is_forbidden: Tensor) -> Tensor:
    return torch.zeros(is_forbidden.shape, device=is_forbidden.device).masked_fill_(is_forbidden, float("-inf"))


def _attend_group(query: Tensor, held: Tensor, group: Group, scaling: float) -> Tensor:
    """One token of each sequence: query (S, H, D) → (S, H * D). Heads that share a key are columns of one product.

    For a single token these two products are faster than torch's attention, which is made for many.
    """
    keys, values = held[:, group.rows, :, : max(group.ends)].flatten(1, 2)  # (S * K, L, D)
    mask = group.mask.to(held.dtype).expand(-1, held.shape[2], -1).reshape(len(keys), -1, 1)
    grouped = query.reshape(len(keys), -1, query.shape[-1])  # (S * K, G, D)
    scores = torch.baddbmm(mask, keys, grouped.mT, alpha=scaling)  # (S * K, L, G): reads the keys as they lie
    weights = scores.mT.softmax(-1, dtype=torch.float32).to(held.dtype)
    return torch.bmm(weights, values).view(len(query), -1)


def _attend_span(query: Tensor, held: Tensor, span: Span, future: Tensor | None, scaling: float) -> Tensor:
    """Many tokens of one sequence: query (T, H, D) → (num_tokens, H * D)."""
    keys, values = held[:, span.row, None, :, : span.end]  # (1, K, L, D)
    own = query[span.offset : span.offset + span.num_tokens].transpose(0, 1)[None]  # (1, H, n, D)
    is_grouped = own.shape[1] != keys.shape[1]
    mask = None if future is None else future.to(own.dtype)
    mixed = F.scaled_dot_product_attention(
        own, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=is_grouped
    )
    return mixed[0].transpose(0, 1).reshape(span.num_tokens, -1)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as the `Step` in `options` says. query (1, H, T, D), key and value (1, K, T, D) → (1, T, H, D)."""
    step = options.get("step")
    if not isinstance(step, Step):
        raise UnsupportedModel("the model did not pass the step on to its attention")
    if attention_mask is not None or any(options.get(name) is not None for name in UNKNOWN_OPTIONS):
        raise UnsupportedModel("the model's attention has masks, caps or biases of its own")
    sliding_window = options.get("sliding_window")
    if sliding_window is not None and sliding_window < step.cache.max_num_tokens:
        raise UnsupportedModel(f"the model's attention slides over {sliding_window} tokens")
    if key.shape != value.shape:
        raise UnsupportedModel("the model's keys and values differ in width")
    scaling = options.get("scaling")
    mixed = step.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        torch.stack((key[0], value[0])).permute(2, 0, 1, 3),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return mixed.view(1, -1, query.shape[1], query.shape[3]).to(query.dtype), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, ragged_attention)
