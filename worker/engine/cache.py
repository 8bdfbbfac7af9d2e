"""Keys and values of the sequences: one row of tensors per sequence, growing with what the rows hold.

Knows rows and positions, not requests. Layers are allocated when they are first written, so their shapes need not be
known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GRAIN_TOKENS = 64


class KVCache:
    """Per layer a tensor (2, num_rows, num_kv_heads, num_tokens, head_dim), keys before values."""

    def __init__(self, *, max_num_rows: int, max_num_tokens: int, dtype: torch.dtype | None = None) -> None:
        self._max_num_rows = max_num_rows
        self.max_num_tokens = max_num_tokens
        self._dtype = dtype
        self._num_rows = 0
        self._num_tokens = 0
        self._layers: dict[int, Tensor] = {}

    def reserve(self, *, num_rows: int, num_tokens: int) -> None:
        """Make room for `num_tokens` in each of `num_rows` rows, by doubling; what is there stays."""
        if num_rows > self._num_rows:
            self._num_rows = min(max(num_rows, 2 * self._num_rows), self._max_num_rows)
        if num_tokens > self._num_tokens:
            grown = -(-max(num_tokens, 2 * self._num_tokens) // GRAIN_TOKENS) * GRAIN_TOKENS
            self._num_tokens = min(grown, self.max_num_tokens)

    def write(
        self, layer: int, rows: Tensor, positions: Tensor, kv: Tensor, *, is_used: Tensor | None = None
    ) -> Tensor:
        """Store `kv` (T, 2, num_kv_heads, head_dim) at rows (T,), positions (T,); return the layer.

        Where `is_used` (T,) is given and false, what is there is written again.
        """
        held = self._fitting(layer, kv)
        kv = kv.to(held.dtype)
        if is_used is not None:
            kv = torch.where(is_used[:, None, None, None], kv, held[:, rows, :, positions])
        held[:, rows, :, positions] = kv
        return held

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of one row to another."""
        self.load(target, [layer[:, source, :, :num_tokens] for layer in self._layers.values()])

    def save(self, row: int, num_tokens: int) -> list[Tensor]:
        """Return copies of the first `num_tokens` tokens of `row`, a tensor per layer."""
        return [layer[:, row, :, :num_tokens].clone() for layer in self._layers.values()]

    def load(self, row: int, saved: Sequence[Tensor]) -> None:
        """Write what `save` returned, or a beginning of it, into `row`."""
        self.reserve(num_rows=row + 1, num_tokens=max((part.shape[2] for part in saved), default=0))
        for layer, part in zip(list(self._layers), saved, strict=True):
            self._fitting(layer, part.transpose(1, 2))[:, row, :, : part.shape[2]] = part

    @property
    def capacity(self) -> tuple[int, int]:
        """The rows, and the tokens in each, that there is room for; when they grow the tensors are new ones."""
        return self._num_rows, self._num_tokens

    @property
    def num_bytes(self) -> int:
        """The memory that is allocated."""
        return sum(layer.nbytes for layer in self._layers.values())

    def _fitting(self, layer: int, kv: Tensor) -> Tensor:
        """Return the layer with all the room that is reserved, for the kind of heads that `kv` (…, K, D) has."""
        old = self._layers.get(layer)
        if old is not None and (old.shape[1], old.shape[3]) == (self._num_rows, self._num_tokens):
            return old
        shape = (2, self._num_rows, kv.shape[-2], self._num_tokens, kv.shape[-1])
        # Zeros, because what lies past a sequence's end gets the weight 0, and 0 times garbage may be NaN.
        new = torch.zeros(shape, dtype=self._dtype or kv.dtype, device=kv.device)
        if old is not None:
            new[:, : old.shape[1], :, : old.shape[3]] = old
        self._layers[layer] = new
        return new
