"""GPT-2 for decoding: GPT-2, DialoGPT, and the trunk of double-head checkpoints.

Takes the weights of a loaded `transformers` model and packs them once; which rows see each other the step knows.
After Radford et al. (2019), as in `transformers`' modeling_gpt2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from worker.engine.attention import Step
from worker.engine.linear import Linear, pack

# Names of one function: GELU in its tanh form, which the packed products bring along.
GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalise rows (T, E)."""
        return F.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: attention and MLP, each behind its norm; `up` includes the activation."""

    norm_attention: Norm
    qkv: Linear
    out: Linear
    scaling: float
    norm_mlp: Norm
    up: Linear
    down: Linear


class Gpt2:
    """The network over the rows of a step. Weights in `dtype`; what flows between the layers in `stream`."""

    def __init__(self, model: Any, *, dtype: torch.dtype, stream: torch.dtype) -> None:
        config, trunk = model.config, model.transformer
        self.vocabulary_size = len(model.lm_head.weight)
        self._num_heads: int = config.n_head
        self._stream = stream
        self._tokens: Tensor = trunk.wte.weight
        self._positions: Tensor = trunk.wpe.weight

        def norm(module: Any) -> Norm:
            return Norm(module.weight.to(stream), module.bias.to(stream), module.eps)

        def linear(module: Any) -> Linear:  # a Conv1D, which holds its matrix as (in, out)
            return pack(module.weight.T, module.bias, dtype=dtype)

        def activated(module: Any) -> Linear:
            if config.activation_function in GELUS:
                return pack(module.weight.T, module.bias, dtype=dtype, has_gelu=True)
            inner, activation = linear(module), ACT2FN[config.activation_function]
            return lambda rows: activation(inner(rows))

        def scaling(index: int) -> float:
            scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
            return scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale

        self._layers = [
            Layer(
                norm_attention=norm(block.ln_1),
                qkv=linear(block.attn.c_attn),
                out=linear(block.attn.c_proj),
                scaling=scaling(index),
                norm_mlp=norm(block.ln_2),
                up=activated(block.mlp.c_fc),
                down=linear(block.mlp.c_proj),
            )
            for index, block in enumerate(trunk.h)
        ]
        self._norm = norm(trunk.ln_f)
        self._head = pack(model.lm_head.weight, dtype=dtype)

    @staticmethod
    def is_for(model: Any) -> bool:
        """Whether `model` is a GPT-2 with a language-model head, and nothing but GPT-2."""
        return (
            model.config.model_type == "gpt2"
            and all(hasattr(model, name) for name in ("transformer", "lm_head"))
            and not model.config.add_cross_attention
        )

    def __call__(
        self, ids: Tensor, positions: Tensor, last: Tensor, step: Step, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the rows ids, positions and token_types (T,); return scores and states after the rows `last`."""
        x = F.embedding(ids, self._tokens).to(self._stream) + F.embedding(positions, self._positions)
        if token_types is not None:
            x += F.embedding(token_types, self._tokens)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.norm_attention(x)).view(len(x), 3, self._num_heads, -1)
            mixed = step.attend(index, qkv[:, 0], qkv[:, 1:], layer.scaling)
            if layer is self._layers[-1]:  # the other rows were wanted for their keys and values only
                x, mixed = x[last], mixed[last]
            x += layer.out(mixed)
            x += layer.down(layer.up(layer.norm_mlp(x)))
        states = self._norm(x)
        return self._head(states), states
