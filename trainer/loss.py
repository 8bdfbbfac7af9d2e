"""The language-model loss at labelled positions only, never holding all logits at once. Knows tensors, not data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of logits held at a time: 256 × 49,152 floats are 50 MB.
CHUNK_ROWS = 256


class SparseHeadLoss(torch.autograd.Function):
    """Sum of the cross entropy of `hidden @ weight.T` against `targets`.

    The gradients are computed in the forward pass, chunk by chunk, as Liger Kernel's fused linear cross entropy
    does (arXiv:2410.10989): the (N, vocabulary) logits never exist, forward or backward.

    hidden (N, H), weight (V, H), targets (N,); returns a scalar in nats.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        has_weight_grad = ctx.needs_input_grad[1]
        head = weight.to(hidden.dtype)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if has_weight_grad else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows, wanted = hidden[start : start + CHUNK_ROWS], targets[start : start + CHUNK_ROWS, None]
            logits = (rows @ head.T).float()
            log_sum = logits.logsumexp(-1, keepdim=True)
            total += (log_sum - logits.gather(1, wanted)).sum()
            grad = logits.sub_(log_sum).exp_()
            grad.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=grad.dtype))
            grad = grad.to(hidden.dtype)
            hidden_grad[start : start + CHUNK_ROWS] = grad @ head
            if weight_grad is not None:
                weight_grad += (grad.T @ rows).float()
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grads[0]
        hidden_grad = hidden_grad * scale.to(hidden_grad.dtype)
        return hidden_grad, None if weight_grad is None else weight_grad * scale, None


def sparse_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the summed loss; see `SparseHeadLoss`."""
    result: Tensor = SparseHeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result
