"""Llama-type networks for decoding: RMS norm, rotary positions, grouped heads, gated MLP (Llama, SmolLM2).

Takes the weights of a loaded `transformers` model and packs them once; which rows see each other the step knows.
After Touvron et al. (2023) and Su et al. (2021), as in `transformers`' modeling_llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.engine.attention import Step
from worker.engine.linear import Linear, pack

# Others change their frequencies with the length of the text.
FIXED_ROTARY = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square norm over the last dimension (Zhang and Sennrich, 2019)."""

    weight: Tensor
    eps: float

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalise rows (T, E)."""
        return F.rms_norm(rows, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: attention and gated MLP, each behind its norm."""

    norm_attention: Norm
    qkv: Linear
    out: Linear
    norm_mlp: Norm
    gate_and_up: Linear
    down: Linear


class Llama:
    """The network over the rows of a step. Weights in `dtype`; what flows between the layers in `stream`."""

    def __init__(self, model: Any, *, dtype: torch.dtype, stream: torch.dtype) -> None:
        config, trunk = model.config, model.model
        self.vocabulary_size = len(model.lm_head.weight)
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._width: int = config.head_dim
        self._stream = stream
        self._tokens: Tensor = trunk.embed_tokens.weight
        self._frequencies: Tensor = trunk.rotary_emb.inv_freq.float()
        self._rotary_scaling = float(trunk.rotary_emb.attention_scaling)

        def norm(module: Any) -> Norm:
            return Norm(module.weight.to(stream), module.variance_epsilon)

        def stacked(*modules: Any) -> Linear:
            # A few numbers in a gated MLP's rows are far larger than the rest: rows of 8 bits cost 2.5 % of perplexity.
            biases = [module.bias for module in modules]
            return pack(
                torch.cat([module.weight for module in modules]),
                None if biases[0] is None else torch.cat(biases),
                dtype=dtype,
                is_fine=True,
            )

        def rotated(module: Any) -> Any:
            return _Pairs(module, self._width)

        self._layers = [
            Layer(
                norm_attention=norm(block.input_layernorm),
                qkv=stacked(rotated(block.self_attn.q_proj), rotated(block.self_attn.k_proj), block.self_attn.v_proj),
                out=stacked(block.self_attn.o_proj),
                norm_mlp=norm(block.post_attention_layernorm),
                gate_and_up=stacked(block.mlp.gate_proj, block.mlp.up_proj),
                down=stacked(block.mlp.down_proj),
            )
            for block in trunk.layers
        ]
        self._norm = norm(trunk.norm)
        self._head = stacked(model.lm_head)

    @staticmethod
    def is_for(model: Any) -> bool:
        """Whether `model` is a Llama with positions that this module computes."""
        config = model.config
        return (
            config.model_type == "llama"
            and all(hasattr(model, name) for name in ("model", "lm_head"))
            and config.hidden_act == "silu"
            and model.model.rotary_emb.rope_type in FIXED_ROTARY
        )

    def __call__(self, ids: Tensor, positions: Tensor, last: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Compute the rows ids and positions (T,); return scores and states after the rows `last` (n,)."""
        x = F.embedding(ids, self._tokens).to(self._stream)
        turns = self._turns(positions)
        num_rotated = self._num_heads + self._num_kv_heads
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(layer.norm_attention(x)).view(len(x), -1, self._width)
            _rotate(heads[:, :num_rotated], turns)
            kv = heads[:, self._num_heads :].view(len(x), 2, self._num_kv_heads, self._width)
            mixed = step.attend(index, heads[:, : self._num_heads], kv, self._width**-0.5)
            if layer is self._layers[-1]:  # the other rows were wanted for their keys and values only
                x, mixed = x[last], mixed[last]
            x += layer.out(mixed)
            gate, up = layer.gate_and_up(layer.norm_mlp(x)).chunk(2, dim=-1)
            x += layer.down(F.silu(gate).mul_(up))
        states = self._norm(x)
        return self._head(states), states

    def _turns(self, positions: Tensor) -> Tensor:
        """The rotation of each row, as complex numbers (T, 1, D/2)."""
        angles = positions[:, None].float() * self._frequencies
        return torch.polar(torch.full_like(angles, self._rotary_scaling), angles)[:, None]


class _Pairs:
    """A projection whose outputs that rotate together, i and i + D/2 of a head, have become neighbours.

    Query and key are reordered alike, so their products are what they were.
    """

    def __init__(self, module: Any, width: int) -> None:
        self.weight = self._reordered(module.weight, width)
        self.bias = None if module.bias is None else self._reordered(module.bias, width)

    @staticmethod
    def _reordered(values: Tensor, width: int) -> Tensor:
        return values.view(-1, 2, width // 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def _rotate(heads: Tensor, turns: Tensor) -> None:
    """Turn the pairs of heads (T, H, D) by turns (T, 1, D/2), in place."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    if pairs.dtype is torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))
