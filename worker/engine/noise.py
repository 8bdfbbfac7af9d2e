"""Random numbers that depend on a key, a position and a token, and on nothing else.

So a reply drawn with a key is the same alone and beside others, on a CPU and on a GPU. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed number that int64 tensors hold."""
    return value - 2**64 if value >= 2**63 else value


# The constants of splitmix64.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def gumbel(keys: Sequence[int], positions: Sequence[int], ids: Tensor) -> Tensor:
    """Gumbel noise for the tokens `ids` (B, K), row b drawn for `keys[b]` at `positions[b]`: float64 (B, K)."""
    return -torch.log(-torch.log(uniform(keys, positions, ids)))


def uniform(keys: Sequence[int], positions: Sequence[int], ids: Tensor) -> Tensor:
    """Numbers between 0 and 1 for the tokens `ids` (B, K), for `keys[b]` at `positions[b]`; never 0 or 1, float64."""
    # Each position begins a stream of its own; within it every token has its place.
    starts = [_signed((key + _GOLDEN * (position + 1)) % 2**64) for key, position in zip(keys, positions, strict=True)]
    streams = _mixed(torch.tensor(starts, dtype=torch.int64, device=ids.device))
    bits = _mixed(_mixed(streams[:, None] + (ids + 1) * _signed(_GOLDEN)) ^ streams[:, None])
    return ((bits >> 12 & (2**52 - 1)).double() + 0.5) * 2.0**-52


def _mixed(x: Tensor) -> Tensor:
    """Splitmix64's finaliser; int64 products wrap, and the masks make the shifts logical."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * _FIRST
    x = (x ^ (x >> 27 & 2**37 - 1)) * _SECOND
    return x ^ (x >> 31 & 2**33 - 1)
