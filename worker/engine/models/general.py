"""Any causal LM of `transformers` whose attention can be replaced, computed by its own code."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.attention import ATTENTION, Step, UnsupportedModel


class General:
    """The model's own forward pass over the rows of a step, with our attention; `needs_states` where a head does."""

    def __init__(self, model: PreTrainedModel, *, needs_states: bool = False) -> None:
        model.set_attn_implementation(ATTENTION)
        self.vocabulary_size = vocabulary_size(model)
        self._model = model
        self._needs_states = needs_states
        self._can_choose_logits = accepts(model, "logits_to_keep")

    def __call__(self, ids: Tensor, positions: Tensor, last: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """Compute the rows ids and positions (T,); return scores and states after the rows `last` (n,)."""
        options: dict[str, Any] = {"logits_to_keep": last} if self._can_choose_logits else {}
        if self._needs_states:
            options["output_hidden_states"] = True
        output = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, step=step, **options)
        if not step.num_layers_seen:
            raise UnsupportedModel("the model does not use the attention interface of transformers")
        logits: Tensor = output.logits[0]
        states = output.hidden_states[-1][0, last] if self._needs_states else None
        return logits if self._can_choose_logits else logits[last], states


def accepts(model: PreTrainedModel, name: str) -> bool:
    """Whether the model's forward pass has a parameter `name`."""
    return name in inspect.signature(model.forward).parameters


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of scores per token."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(head.weight.shape[0])
