"""The second head: which of several replies is the right one, told by the state at the end of each.

The head and its loss of TransferTransfo (Wolf et al. 2019) and of `GPT2DoubleHeadsModel`: dropout 0.1 and one linear
layer, kept under that class's names. Knows states, not data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Beside an adapter, which has no file for whole weights.
HEAD_FILE = "choice_head.safetensors"
DROPOUT = 0.1


class ChoiceHead(nn.Module):
    """Scores states: (..., H) → (..., 1)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.normal_(self.summary.weight, std=0.02)
        nn.init.zeros_(self.summary.bias)

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.summary(self.dropout(states.float()))
        return scores


def choice_loss(head: nn.Module, states: Tensor, choices: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Return the summed cross entropy, in nats, of picking the first of each question's candidates.

    states (B, T, H); `choices` holds for each question the places (row, column) where its candidates end.
    """
    total = states.new_zeros((), dtype=torch.float32)
    for places in choices:
        rows, columns = (torch.tensor(axis, device=states.device) for axis in zip(*places, strict=True))
        scores = head(states[rows, columns]).squeeze(-1)
        total = total + scores.logsumexp(0) - scores[0]
    return total
