"""Products with a model's weights, packed once for the hardware. Knows no model and no cache.

On a CPU the weights are laid out as oneDNN wants them: a product of 16 rows took 15 ms instead of 40 in float32 and 6
instead of 10 in bfloat16 (the layers of GPT-2 124M, two cores). The ops are those that torch's own compiler emits.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows that oneDNN expects when it chooses the layout; more and fewer work as well.
EXPECTED_ROWS = 16
LARGEST = 127.0  # of a symmetric int8
MIDDLE = 128  # of an unsigned one


class Linear(Protocol):
    """A matrix and a bias, and perhaps the activation behind them."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows (T, in) times the matrix plus the bias, activated: (T, out), in the dtype of `rows`."""


class PlainLinear:
    """Weights as torch holds them, (out, in): for every device."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, has_gelu: bool = False) -> None:
        self._weight, self._bias, self._has_gelu = weight, bias, has_gelu

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply in the dtype of the weights."""
        out = F.linear(rows.to(self._weight.dtype), self._weight, self._bias).to(rows.dtype)
        return _gelu(out) if self._has_gelu else out


class PackedLinear:
    """Weights (out, in) in float32 or bfloat16, in oneDNN's blocks; it activates before the result leaves the core."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, has_gelu: bool = False) -> None:
        self._dtype = weight.dtype
        self._name, self._algorithm = ("gelu", "tanh") if has_gelu else ("none", "")
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), EXPECTED_ROWS)
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply in the dtype of the weights."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self._dtype), self._weight, self._bias, self._name, [], self._algorithm
        )
        return out.to(rows.dtype)


class Int8Linear:
    """Weights (out, in) in 8 bits with a scale per output; each row is rounded with a scale of its own.

    So a row's result does not depend on its neighbours, as it would with one scale for all rows. Rows are rounded to 8
    bits, or with `is_fine` to 8 and what that leaves to 8 more: for rows in which a few numbers are far larger.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, is_fine: bool = False, has_gelu: bool = False) -> None:
        weight = weight.float().contiguous()  # the packing ignores strides
        self._scales = weight.abs().amax(1).clamp_min_(torch.finfo(torch.float32).tiny).div_(LARGEST)
        self._weight = torch.ops.onednn.qlinear_prepack((weight / self._scales[:, None]).round_().to(torch.int8), None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if bias is None else bias.float()
        self._is_fine, self._has_gelu = is_fine, has_gelu
        # oneDNN is only fast with unsigned rows: 0 becomes 128; the half makes cutting off a rounding.
        self._middle = torch.tensor(MIDDLE + 0.5)

    def __call__(self, rows: Tensor) -> Tensor:
        """Round the rows, multiply in integers, scale back. `rows` are float32."""
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(1e-30)
        scales = largest / LARGEST
        rounded = torch.addcmul(self._middle, rows, LARGEST / largest).to(torch.uint8)
        if self._is_fine:
            rest = torch.addcmul(rows, rounded.float() - MIDDLE, scales, value=-1.0)  # at most half a scale
            finer = torch.addcmul(self._middle, rest, 2 * LARGEST * LARGEST / largest).to(torch.uint8)
            both = self._multiplied(torch.cat((rounded, finer)))
            out = torch.add(both[: len(rows)], both[len(rows) :], alpha=0.5 / LARGEST)
        else:
            out = self._multiplied(rounded)
        out = out.mul_(scales) if self._bias is None else torch.addcmul(self._bias, out, scales)
        return _gelu(out) if self._has_gelu else out

    def _multiplied(self, rounded: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, MIDDLE, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return out


def pack(
    weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype, is_fine: bool = False, has_gelu: bool = False
) -> Linear:
    """Return weight (out, in) and bias (out,) as the fastest `Linear` in `dtype` that its device has.

    `is_fine` asks for rows of 16 bits where weights have 8, `has_gelu` for GELU of the result (its tanh form).
    """
    if weight.device.type == "cpu" and dtype is torch.int8:
        return Int8Linear(weight, bias, is_fine=is_fine, has_gelu=has_gelu)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if weight.device.type == "cpu" and is_packable(dtype):
        return PackedLinear(weight, bias, has_gelu=has_gelu)
    return PlainLinear(weight.contiguous(), bias, has_gelu=has_gelu)


def is_packable(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN, and oneDNN computes with `dtype` here."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _gelu(rows: Tensor) -> Tensor:
    return F.gelu(rows, approximate="tanh")
