"""One optimizer step: both losses over the micro-batches of all processes, then one move of the weights.

Each loss is a mean over the labels, or the questions, of the whole step, so that neither the size of micro-batches nor
the number of processes changes it. Knows batches and a model, not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def take_gradient(
    model: TrainingModel, optimizer: Optimizer, ranks: Ranks, config: TrainConfig, batches: Sequence[Batch]
) -> tuple[float, float]:
    """Leave the step's gradient, clipped, in the parameters; return the loss and the gradient's norm before."""
    num_labels = max(sum(batch.num_labels for batch in batches), 1)
    num_questions = max(sum(len(batch.choices) for batch in batches), 1)
    total = 0.0
    for batch in ranks.share(batches):
        loss = batch_loss(model, config, batch, num_labels, num_questions, ranks)
        optimizer.backward(loss)
        total += loss.item()
    ranks.sum_gradients(model.parameters())
    return ranks.sum(total), optimizer.clip(config.max_norm)


def batch_loss(
    model: TrainingModel, config: TrainConfig, batch: Batch, num_labels: int, num_questions: int, ranks: Ranks
) -> Tensor:
    """Return this batch's part of `lm_coef * language model + mc_coef * next utterance`, in nats.

    Only labelled positions meet the vocabulary; wrong candidates go through the trunk alone.
    """
    ids, parts = padded(batch, ranks.device)
    states = model.hidden(ids, dtype=DTYPES[config.dtype])
    rows, columns = (parts[:, 1:] != Part.CONTEXT).nonzero(as_tuple=True)
    loss = sparse_head_loss(states[rows, columns], model.head, ids[rows, columns + 1]) / num_labels
    if config.lm_coef != 1.0:
        loss = loss * config.lm_coef
    if batch.choices and model.choice_head is not None:
        loss = loss + choice_loss(model.choice_head, states, batch.choices) / num_questions * config.mc_coef
    return loss
