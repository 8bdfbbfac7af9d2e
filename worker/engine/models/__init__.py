"""Networks written out for decoding, a page for each family."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.attention import Step
from worker.engine.models.gpt2 import Gpt2
from worker.engine.models.llama import Llama


class Network(Protocol):
    """Computes the rows of a step."""

    vocabulary_size: int

    def __call__(self, ids: Tensor, positions: Tensor, last: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """Compute the rows ids and positions (T,); return what comes after the rows `last` (n,).

        That is the scores (n, V) and the states (n, E) they are computed from, None where nobody needs those.
        """


def network_for(model: PreTrainedModel, *, dtype: torch.dtype) -> Network | None:
    """Return `model`'s network with weights in `dtype`; None for families that have no page here."""
    # A CPU computes what lies between the products faster in float32, and more exactly.
    stream = torch.float32 if model.device.type == "cpu" else dtype
    for family in (Gpt2, Llama):
        if family.is_for(model):
            return family(model, dtype=dtype, stream=stream)
    return None
