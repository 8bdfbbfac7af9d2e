"""Attention over ragged batches: the rows of many sequences side by side in one forward pass, each with its own cache.

Registered with `transformers` under the name `ATTENTION`; a `Step` travels with the forward pass as a keyword argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker.engine.cache import SlotCache

ATTENTION = "personabot"
# What some models pass that this attention does not know: leaving it out would give wrong results quietly.
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias", "is_causal", "head_mask")


class UnsupportedModel(Exception):
    """The model does not compute attention the way this module can replace."""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one sequence in the batch: `num_rows` from `offset`, at positions from `start` in slot `slot`."""

    offset: int
    num_rows: int
    slot: int
    start: int

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.start + self.num_rows


class Step:
    """Where the rows of one forward pass belong: single rows first, ordered by slot, then the longer spans."""

    def __init__(self, spans: Sequence[Span], *, slots: Tensor, positions: Tensor, cache: SlotCache) -> None:
        self.slots = slots
        self.positions = positions
        self.cache = cache
        self.num_layers_seen = 0
        self._singles = [span for span in spans if span.num_rows == 1]
        self._long = [span for span in spans if span.num_rows > 1]
        cache.reserve(num_slots=max(s.slot for s in spans) + 1, num_tokens=max(s.end for s in spans))
        if self._singles:
            self._prepare_singles()
        self._future = [self._future_of(span) for span in self._long]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Cache key and value (K, T, D) and let query (H, T, D) attend; returns (T, H, D)."""
        self.num_layers_seen += 1
        keys, values = self.cache.write(layer, self.slots, self.positions, key.transpose(0, 1), value.transpose(0, 1))
        num_heads, num_rows = query.shape[:2]
        query = query.to(keys.dtype) * scaling
        mixed = torch.empty((num_rows, num_heads, values.shape[-1]), dtype=keys.dtype, device=keys.device)
        num_singles = len(self._singles)
        if num_singles:
            mixed[:num_singles] = self._attend_singles(query[:, :num_singles], keys, values)
        for span, future in zip(self._long, self._future, strict=True):
            rows = slice(span.offset, span.offset + span.num_rows)
            mixed[rows] = _attend_span(
                query[:, rows], keys[span.slot, :, : span.end], values[span.slot, :, : span.end], future
            )
        return mixed

    def _prepare_singles(self) -> None:
        slots = [span.slot for span in self._singles]
        self._num_slots = max(slots) + 1
        self._num_tokens = max(span.end for span in self._singles)
        self._has_holes = slots != list(range(self._num_slots))
        lengths = [1] * self._num_slots
        for span in self._singles:
            lengths[span.slot] = span.end
        columns = torch.arange(self._num_tokens, device=self.slots.device)
        is_past_end = columns >= torch.tensor(lengths, device=self.slots.device)[:, None]
        self._past_end = is_past_end[:, None, None, :]  # (S, 1, 1, L)

    def _attend_singles(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One row each: a padded product over the slots in use. query (H, n, D) → (n, H, D)."""
        num_heads, num_rows, width = query.shape
        num_kv = keys.shape[1]
        rows = query.transpose(0, 1).reshape(num_rows, num_kv, num_heads // num_kv, width)
        slots = self.slots[:num_rows]
        if self._has_holes:
            rows = rows.new_zeros((self._num_slots, *rows.shape[1:])).index_copy_(0, slots, rows)
        used = (slice(self._num_slots), slice(None), slice(self._num_tokens))
        scores = torch.matmul(rows, keys[used].transpose(-1, -2)).masked_fill(self._past_end, float("-inf"))
        mixed = torch.matmul(_softmax(scores), values[used])  # (S, K, G, D)
        if self._has_holes:
            mixed = mixed[slots]
        return mixed.reshape(num_rows, num_heads, -1)

    def _future_of(self, span: Span) -> Tensor:
        """What the rows of `span` may not see: (num_rows, end), True after each row's own position."""
        own = torch.arange(span.start, span.end, device=self.slots.device)
        return torch.arange(span.end, device=self.slots.device) > own[:, None]


def _attend_span(query: Tensor, keys: Tensor, values: Tensor, future: Tensor) -> Tensor:
    """Many rows of one sequence. query (H, n, D), keys and values (K, L, D) → (n, H, D)."""
    num_heads, num_rows, width = query.shape
    num_kv = keys.shape[0]
    rows = query.reshape(num_kv, -1, width)  # heads that share a key lie next to each other
    scores = torch.matmul(rows, keys.transpose(-1, -2)).view(num_kv, -1, num_rows, keys.shape[1])
    weights = _softmax(scores.masked_fill(future, float("-inf"))).view(num_kv, -1, keys.shape[1])
    return torch.matmul(weights, values).view(num_heads, num_rows, -1).transpose(0, 1)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


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
    scaling = options.get("scaling")
    mixed = step.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query[0],
        key[0],
        value[0],
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return mixed[None].to(query.dtype), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, ragged_attention)
