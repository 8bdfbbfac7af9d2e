"""Whether a runner computes what a model of `transformers` computes by itself, tried before it answers anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from worker.engine.attention import ATTENTION, UnsupportedModel
from worker.engine.request import Chunk, Request
from worker.engine.request import Sequence as Running

if TYPE_CHECKING:
    from worker.engine.runner import Runner


@torch.inference_mode()
def check_agreement(model: PreTrainedModel, runner: Runner, attention: str) -> None:
    """Raise unless two short sequences, computed in pieces side by side, score as in the model's own forward pass."""
    num_ids = runner.vocabulary_size
    first, second = (Running(Request(prompt_ids=ids)) for ids in _two_prompts(num_ids))
    first.slot, second.slot = 0, 1
    runner.run([Chunk(first, 4)])
    first.num_cached_tokens = 4
    rows = [*runner.run([Chunk(first, 3), Chunk(second, 4)]).logits]  # ends the first prompt, all but one of the second
    second.num_cached_tokens = 4
    rows += [*runner.run([Chunk(second, 1)]).logits]
    for slot in (0, 1):
        runner.release(slot, ())
    model.set_attn_implementation(attention)
    for sequence, row in zip((first, second), rows, strict=True):
        own = model(input_ids=torch.tensor([sequence.ids], device=model.device)).logits[0, -1].float()
        tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(own.std())
        if not torch.allclose(row, own, atol=tolerance, rtol=0.0):
            raise UnsupportedModel("its scores in a batch differ from those of its own forward pass")
    model.set_attn_implementation(ATTENTION)


def _two_prompts(num_ids: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ids = [(7919 * i + 31) % num_ids for i in range(12)]
    return tuple(ids[:7]), tuple(ids[7:])
