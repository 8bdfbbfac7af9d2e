"""The model a run trains: from scratch, a base in full, or a base with a LoRA adapter; and its weights on disk.

Owns building, the training forward pass and saving. Knows nothing of data or schedules.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from personas.checkpoint import Description, is_checkpoint, read_checkpoint, write_description
from personas.errors import LayoutError
from personas.layout import Layout
from personas.persona import GenerationSettings
from trainer.adapter import adapter_shape, load_adapter, with_adapter
from trainer.choice import HEAD_FILE, ChoiceHead
from trainer.config import ScratchModel, TrainConfig
from trainer.layouts import resolve_base
from worker.engine.runner import vocabulary_size
from worker.head import PREFIX
from worker.loading import base_of, load_network

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ATTENTION = "personabot_training"


def matmul_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention as two batched matmuls, for right-padded rows. query (B, H, T, D), key and value (B, K, T, D).

    On CPU in bf16 it takes a quarter of the time of torch's flash kernel at these lengths (docs/log.md).
    """
    batch, num_heads, length, width = query.shape
    num_kv = key.shape[1]
    group = num_heads // num_kv
    scaling = options.get("scaling") or width**-0.5
    rows = (query * scaling).reshape(batch * num_kv, group * length, width)
    scores = torch.bmm(rows, key.reshape(-1, length, width).transpose(1, 2)).view(-1, group, length, length)
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1, dtype=query.dtype)
    dropout = options.get("dropout", 0.0)
    if dropout:
        weights = nn.functional.dropout(weights, dropout, training=module.training)
    mixed = torch.bmm(weights.view(-1, group * length, length), value.reshape(-1, length, width))
    return mixed.view(batch, num_heads, length, width).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, matmul_attention)


def fuse_activations(model: PreTrainedModel) -> None:
    """Let torch's tanh GELU compute what `gelu_new` computes: one operation in place of six, forward and back."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def add_tokens(model: PreTrainedModel, layout: Layout) -> None:
    """Make room for the tokens that the layout adds; the one that ends a turn begins as the base's own end token.

    The others begin near the mean of all, drawn by torch's seed. The vocabulary is padded to a multiple of 64.
    """
    num_old = vocabulary_size(model)
    model.resize_token_embeddings(layout.vocabulary_size, pad_to_multiple_of=64)
    end = model.config.get_text_config().eos_token_id
    known = [token for token in (end if isinstance(end, list) else [end]) if token is not None and token < num_old]
    new = [token for token in layout.stop_ids if token >= num_old]
    if not known or not new:
        return
    tables: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for table in tables:
            table.weight[new] = table.weight[known[0]].clone()


def token_types(model: PreTrainedModel, layout: Layout, ids: Tensor) -> dict[str, Tensor]:
    """Return what else the trunk takes beside ids (B, T): their token types, where the layout has them."""
    rows = [layout.token_types(row) for row in ids.tolist()]
    if not rows or rows[0] is None:
        return {}
    if "token_type_ids" not in inspect.signature(model.base_model.forward).parameters:
        kind = model.config.model_type
        raise LayoutError(f"layout {layout.name}: {kind} takes no token types. Train a GPT-2, or use another layout.")
    return {"token_type_ids": torch.tensor(rows, device=ids.device)}


def hidden_states(model: PreTrainedModel, layout: Layout) -> Callable[[Tensor], Tensor]:
    """Return the trunk of a loaded model as a function for scoring: right-padded ids (B, T) → states (B, T, H)."""
    if model.device.type == "cpu":
        model.set_attn_implementation(ATTENTION)

    def run(ids: Tensor) -> Tensor:
        types = token_types(model, layout, ids)
        states: Tensor = model.base_model(input_ids=ids, use_cache=False, **types).last_hidden_state
        return states

    return run


class TrainingModel:
    """A causal LM whose trunk and head are called apart, so that only labelled positions meet the vocabulary."""

    def __init__(
        self, model: PreTrainedModel, layout: Layout, *, description: Description, adapter: Any = None
    ) -> None:
        self.model = model
        self.layout = layout
        self.adapter = adapter
        self.choice_head: ChoiceHead | None = None
        self.description = description
        fuse_activations(model)

    @classmethod
    def from_scratch(cls, shape: ScratchModel, layout: Layout, generation: GenerationSettings) -> TrainingModel:
        """Build a GPT-2 of the given shape; the vocabulary is padded to a multiple of 64 for the matmuls."""
        size = -(-layout.vocabulary_size // 64) * 64
        config = GPT2Config(
            vocab_size=size,
            n_positions=layout.max_tokens,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            bos_token_id=None,
            eos_token_id=min(layout.stop_ids),
            pad_token_id=layout.pad_id,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
        )
        return cls(GPT2LMHeadModel(config), layout, description=Description(kind="full", generation=generation))

    @classmethod
    def from_base(cls, config: TrainConfig, layout: Layout) -> TrainingModel:
        """Load the base. With `lora` it is frozen, in the run's dtype, under an adapter in fp32; else all is fp32.

        A checkpoint of ours is gone on with: an adapter on its own base, with its rank.
        """
        assert config.base is not None
        folder = resolve_base(config.base)
        checkpoint = read_checkpoint(folder) if is_checkpoint(folder) else None
        base, lora, generation = config.base, config.lora, config.generation
        if checkpoint is not None and checkpoint.kind == "adapter":
            base, lora, folder = checkpoint.base or "", adapter_shape(checkpoint.folder), base_of(checkpoint)
        model = load_network(folder, DTYPES[config.dtype] if lora else torch.float32)
        if layout.vocabulary_size > vocabulary_size(model):
            add_tokens(model, layout)
        if lora is None:
            return cls(model, layout, description=Description(kind="full", generation=generation))
        adapter = with_adapter(model, lora)
        if checkpoint is not None and checkpoint.kind == "adapter":
            load_adapter(adapter, checkpoint.folder)
        description = Description(kind="adapter", base=base, generation=generation)
        return cls(model, layout, description=description, adapter=adapter)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return {name: p for name, p in self._all_parameters() if p.requires_grad}

    def _all_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.named_parameters()
        if self.choice_head is not None:
            for name, parameter in self.choice_head.named_parameters():
                yield PREFIX + name, parameter

    def add_choice_head(self, own: nn.Linear | None = None) -> None:
        """Add the head that tells the right reply from wrong ones; `own` is the one that the base has already."""
        self.choice_head = ChoiceHead(self.model.config.get_text_config().hidden_size)
        if own is not None:
            self.choice_head.summary.load_state_dict(own.state_dict())

    def to(self, device: torch.device) -> None:
        """Move the weights to `device`, and compute as is quickest there."""
        self.model.to(device)  # type: ignore[arg-type]
        if self.choice_head is not None:
            self.choice_head.to(device)
        if device.type == "cpu":
            self.model.set_attn_implementation(ATTENTION)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off."""
        self.model.train(mode)
        if self.choice_head is not None:
            self.choice_head.train(mode)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return list(self.named_parameters().values())

    def hidden(self, ids: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Run the trunk over right-padded rows: (B, T) → (B, T, H)."""
        types = token_types(self.model, self.layout, ids)
        with torch.autocast(ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
            states: Tensor = self.model.base_model(input_ids=ids, use_cache=False, **types).last_hidden_state
        return states.to(dtype)

    @property
    def head(self) -> Tensor:
        """The output embedding (V, H)."""
        weight: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return weight

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained parameters by name."""
        return {name: p.detach() for name, p in self.named_parameters().items()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` returned."""
        own = dict(self._all_parameters())
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def save(self, folder: Path) -> None:
        """Write weights, configuration, layout and description; fp16, which these weights lose nothing by."""
        self.layout.write(folder)
        if self.adapter is not None:
            self._save_adapter(folder)
        else:
            tensors = {n: p.detach().to(torch.float16).contiguous() for n, p in self._all_parameters()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            config = self.model.config.to_dict()
            config |= {"dtype": "float16", "architectures": [type(self.model).__name__]}
            (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
        write_description(folder, self.description)

    def _save_adapter(self, folder: Path) -> None:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.adapter)
        save_file({n: p.to(torch.float16).contiguous() for n, p in state.items()}, folder / "adapter_model.safetensors")
        if self.choice_head is not None:
            head = {PREFIX + n: p.detach().to(torch.float16) for n, p in self.choice_head.named_parameters()}
            save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
        config = self.adapter.peft_config["default"].to_dict()
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = self.description.base
        config["inference_mode"] = True
        text = json.dumps({k: v for k, v in config.items() if v is not None}, indent=2, sort_keys=True, default=str)
        (folder / "adapter_config.json").write_text(text + "\n")
