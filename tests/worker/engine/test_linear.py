"""Packed products: what they compute, and that a row does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch

from worker.engine.linear import Int8Linear, PackedLinear, PlainLinear, is_packable, pack

OUT, IN = 48, 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.int8: 0.02}


def given(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_a_packed_product_is_nearly_the_exact_one(num_rows: int, dtype: torch.dtype, has_bias: bool) -> None:
    weight, bias, rows = given(OUT, IN), given(OUT) if has_bias else None, given(num_rows, IN)
    exact = torch.nn.functional.linear(rows, weight, bias)
    computed = pack(weight, bias, dtype=dtype)(rows)
    assert computed.dtype is torch.float32
    assert (computed - exact).abs().max() < TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float16], ids=str)
def test_gelu_is_applied_to_the_product(dtype: torch.dtype) -> None:
    weight, bias, rows = given(OUT, IN), given(OUT), given(3, IN)
    plain = pack(weight, bias, dtype=dtype)(rows)
    expected = torch.nn.functional.gelu(plain, approximate="tanh")
    torch.testing.assert_close(pack(weight, bias, dtype=dtype, has_gelu=True)(rows), expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_transposed_weight_is_packed_as_it_reads(dtype: torch.dtype) -> None:
    weight, rows = given(OUT, IN), given(3, IN)
    transposed = weight.T.contiguous().T
    assert torch.equal(pack(transposed, dtype=dtype)(rows), pack(weight, dtype=dtype)(rows))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_no_rows_give_no_rows(dtype: torch.dtype) -> None:
    assert pack(given(OUT, IN), dtype=dtype)(given(0, IN)).shape == (0, OUT)


def test_a_rounded_row_is_the_same_beside_a_much_larger_one() -> None:
    linear = pack(given(OUT, IN), dtype=torch.int8)
    rows = given(2, IN)
    rows[1] *= 1000
    assert torch.equal(linear(rows)[0], linear(rows[:1])[0])


def test_rows_and_outputs_of_zeros_stay_zeros() -> None:
    weight = given(OUT, IN)
    weight[3] = 0
    linear = pack(weight, dtype=torch.int8)
    assert linear(torch.zeros(1, IN)).eq(0).all()
    assert linear(given(2, IN))[:, 3].eq(0).all()


def test_the_kind_of_packing_follows_device_and_dtype() -> None:
    weight = given(OUT, IN)
    assert isinstance(pack(weight, dtype=torch.int8), Int8Linear)
    assert isinstance(pack(weight, dtype=torch.float32), PackedLinear if is_packable(torch.float32) else PlainLinear)
    assert isinstance(pack(weight, dtype=torch.float16), PlainLinear)


def test_plain_weights_multiply_in_their_own_numbers_and_answer_in_those_of_the_rows() -> None:
    computed = PlainLinear(given(OUT, IN).bfloat16(), None)(given(2, IN))
    assert computed.dtype is torch.float32
    torch.testing.assert_close(computed, given(2, IN) @ given(OUT, IN).T, atol=0.3, rtol=0.02)


def test_fine_rows_keep_small_numbers_beside_a_very_large_one() -> None:
    weight, rows = given(OUT, IN), given(4, IN)
    rows[:, 5] = 300.0
    exact = rows @ weight.T
    coarse, fine = (pack(weight, dtype=torch.int8, is_fine=is_fine)(rows) - exact for is_fine in (False, True))
    assert fine.norm() < coarse.norm() / 2


def test_fine_rows_leave_only_the_error_of_the_weights() -> None:
    levels = torch.randint(-127, 128, (OUT, IN), generator=torch.Generator().manual_seed(0)).float()
    levels[:, 0] = 127.0  # so that every output's scale is 1 and the weights are exact
    rows = given(4, IN)
    exact = torch.nn.functional.linear(rows, levels)
    assert (pack(levels, dtype=torch.int8, is_fine=True)(rows) - exact).norm() < 2e-4 * exact.norm()
