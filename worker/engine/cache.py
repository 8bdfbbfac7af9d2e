"""Keys and values of the sequences: one row of tensors per sequence, growing with what the rows hold.

Knows rows and positions, not requests. Layers are allocated when they are first written, so their shapes need not be
known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.device_errors import is_out_of_memory

GRAIN_TOKENS = 64


class KVCache:
    """Per layer a tensor (2, num_rows, num_kv_heads, num_tokens, head_dim), keys before values."""

    def __init__(self, *, max_num_rows: int, max_num_tokens: int, dtype: torch.dtype | None = None) -> None:
        self._max_num_rows = max_num_rows
        self.max_num_tokens = max_num_tokens
        self._dtype = dtype
        self._num_rows = 0
        self._num_tokens = 0
        # Counts when tensors are replaced by larger ones: who has noted their addresses has to look again.
        self.version = 0
        self._layers: dict[int, Tensor] = {}

    def reserve(self, *, num_rows: int, num_tokens: int) -> None:
        """Make room for `num_tokens` in each of `num_rows` rows, by doubling where memory allows; what is there stays.

        Raises what torch raises where there is no memory for it; then there is as much room as before.
        """
        rows, tokens = self.capacity
        if num_rows <= rows and num_tokens <= tokens:
            return
        needed = self._rounded(max(num_rows, rows), max(num_tokens, tokens))
        doubled = self._rounded(
            max(num_rows, 2 * rows) if num_rows > rows else rows,
            max(num_tokens, 2 * tokens) if num_tokens > tokens else tokens,
        )
        try:
            self._grow(*doubled)
        except Exception as error:
            if doubled == needed or not is_out_of_memory(error):
                raise
            self._grow(*needed)

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
        for layer, part in zip(self._layers.values(), saved, strict=True):
            layer[:, row, :, : part.shape[2]] = part

    @property
    def capacity(self) -> tuple[int, int]:
        """The rows, and the tokens in each, that there is room for."""
        return self._num_rows, self._num_tokens

    @property
    def num_bytes(self) -> int:
        """The memory that is allocated."""
        return sum(layer.nbytes for layer in self._layers.values())

    def _rounded(self, num_rows: int, num_tokens: int) -> tuple[int, int]:
        grains = -(-num_tokens // GRAIN_TOKENS)
        return min(num_rows, self._max_num_rows), min(grains * GRAIN_TOKENS, self.max_num_tokens)

    def _grow(self, num_rows: int, num_tokens: int) -> None:
        """Replace layer by layer, so that only one is there twice; an error leaves some larger than others."""
        for index, old in self._layers.items():
            (_, rows, num_heads, tokens, width) = old.shape
            if rows < num_rows or tokens < num_tokens:
                new = self._zeros(max(rows, num_rows), num_heads, max(tokens, num_tokens), width, like=old)
                new[:, :rows, :, :tokens] = old
                self._layers[index] = new
                self.version += 1
        self._num_rows, self._num_tokens = num_rows, num_tokens

    def _fitting(self, layer: int, kv: Tensor) -> Tensor:
        """Return the layer; one that is written for the first time gets the room that is reserved."""
        if layer not in self._layers:
            try:
                self._layers[layer] = self._zeros(self._num_rows, kv.shape[-2], self._num_tokens, kv.shape[-1], like=kv)
            except Exception:  # of a first step; the next one may ask for less
                self._layers.clear()
                self._num_rows = self._num_tokens = 0
                raise
        return self._layers[layer]

    def _zeros(self, *shape: int, like: Tensor) -> Tensor:
        """Zeros, because what lies past a sequence's end gets the weight 0, and 0 times garbage may be NaN."""
        return torch.zeros((2, *shape), dtype=self._dtype or like.dtype, device=like.device)
