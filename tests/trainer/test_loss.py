"""The sparse head loss against torch's own cross entropy."""

from __future__ import annotations

import torch

from trainer.loss import CHUNK_ROWS, sparse_head_loss


def test_loss_and_gradients_equal_the_dense_computation_across_chunks() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(CHUNK_ROWS + 37, 16, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (len(hidden),))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.3, (hidden, weight))
    loss = sparse_head_loss(hidden, weight, targets)
    got = torch.autograd.grad(loss * 0.3, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(got, wanted)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(11, 8)
    sparse_head_loss(hidden, weight, torch.arange(5)).backward()
    assert hidden.grad is not None
    assert weight.grad is None
