"""One optimizer step: both losses over the micro-batches of all processes, then one move of the weights.

Each loss is a mean over the labels, or the questions, of the whole step, so that neither the size of micro-batches nor
the number of processes changes it. Knows batches and a model, not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from personas.layout import Part
from trainer.choice import choice_loss
from trainer.config import TrainConfig
from trainer.data import Batch
from trainer.evaluate import padded
from trainer.loss import sparse_head_loss
from trainer.model import DTYPES, TrainingModel
from trainer.optimizer import Optimizer
from trainer.ranks import Ranks


class Taken(NamedTuple):
    """What a step came to: its loss and the gradient's norm before clipping, and the two losses in it, unweighted."""

    loss: float
    norm: float
    lm_loss: float
    mc_loss: float


def take_gradient(
    model: TrainingModel, optimizer: Optimizer, ranks: Ranks, config: TrainConfig, batches: Sequence[Batch]
) -> Taken:
    """Leave the step's gradient, clipped, in the parameters."""
    num_labels = max(sum(batch.num_labels for batch in batches), 1)
    num_questions = max(sum(len(batch.choices) for batch in batches), 1)
    total, lm_total, mc_total = 0.0, 0.0, 0.0
    for batch in ranks.share(batches):
        lm_loss, mc_loss = batch_losses(model, config, batch, ranks)
        lm_loss, mc_loss = lm_loss / num_labels, mc_loss / num_questions
        loss = lm_loss if config.lm_coef == 1.0 else lm_loss * config.lm_coef
        if batch.choices:
            loss = loss + mc_loss * config.mc_coef
        optimizer.backward(loss)
        total, lm_total, mc_total = total + loss.item(), lm_total + lm_loss.item(), mc_total + mc_loss.item()
    ranks.sum_gradients(model.parameters())
    return Taken(ranks.sum(total), optimizer.clip(config.max_norm), ranks.sum(lm_total), ranks.sum(mc_total))


def batch_losses(model: TrainingModel, config: TrainConfig, batch: Batch, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return both losses of a batch, summed over its labels and its questions, in nats.

    Only labelled positions meet the vocabulary; wrong candidates go through the trunk alone.
    """
    ids, parts = padded(batch, ranks.device)
    states = model.hidden(ids, dtype=DTYPES[config.dtype])
    rows, columns = (parts[:, 1:] != Part.CONTEXT).nonzero(as_tuple=True)
    lm_loss = sparse_head_loss(states[rows, columns], model.head, ids[rows, columns + 1])
    if not batch.choices or model.choice_head is None:
        return lm_loss, states.new_zeros(())
    return lm_loss, choice_loss(model.choice_head, states, batch.choices)
