"""Keys and values of the running sequences: one row of tensors per slot, growing with what the rows hold.

Knows slots and positions, not requests. Layers are allocated when they are first written, so their shapes need not be
known beforehand.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRAIN_TOKENS = 64


class SlotCache:
    """Per layer a pair of tensors (num_slots, num_kv_heads, num_tokens, head_dim)."""

    def __init__(self, *, max_num_slots: int, max_num_tokens: int, dtype: torch.dtype | None = None) -> None:
        self._max_num_slots = max_num_slots
        self.max_num_tokens = max_num_tokens
        self._dtype = dtype
        self._num_slots = 0
        self._num_tokens = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, *, num_slots: int, num_tokens: int) -> None:
        """Make room for `num_tokens` in each of `num_slots` slots, by doubling; what is there stays."""
        if num_slots > self._num_slots:
            self._num_slots = min(max(num_slots, 2 * self._num_slots), self._max_num_slots)
        if num_tokens > self._num_tokens:
            grown = -(-max(num_tokens, 2 * self._num_tokens) // GRAIN_TOKENS) * GRAIN_TOKENS
            self._num_tokens = min(grown, self.max_num_tokens)

    def write(self, layer: int, slots: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store `key` and `value` (T, num_kv_heads, head_dim) at slots (T,), positions (T,); return the layer."""
        old = self._layers.get(layer)
        keys = self._fitting(old and old[0], key)
        values = self._fitting(old and old[1], value)
        self._layers[layer] = keys, values
        keys[slots, :, positions] = key.to(keys.dtype)
        values[slots, :, positions] = value.to(values.dtype)
        return keys, values

    @property
    def num_bytes(self) -> int:
        """The memory that is allocated."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def _fitting(self, old: Tensor | None, written: Tensor) -> Tensor:
        if old is not None and old.shape[0] == self._num_slots and old.shape[2] == self._num_tokens:
            return old
        shape = (self._num_slots, written.shape[1], self._num_tokens, written.shape[2])
        # Zeros, because what lies past a sequence's end gets the weight 0, and 0 times garbage may be NaN.
        new = torch.zeros(shape, dtype=self._dtype or written.dtype, device=written.device)
        if old is not None:
            new[: old.shape[0], :, : old.shape[2]] = old
        return new
