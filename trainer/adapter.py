"""The LoRA adapter of a run, through peft: put on a model, and taken up again from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from trainer.config import Lora

# Every linear layer of the Llama and GPT-2 families; peft takes those that exist.
LINEAR_NAMES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("c_attn", "c_proj", "c_fc"),
)


def adapter_shape(folder: Path) -> Lora:
    """Return the shape of a checkpoint's adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Lora(rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0))


def load_adapter(adapter: Any, folder: Path) -> None:
    """Put a checkpoint's weights into an adapter of the same shape."""
    from peft import set_peft_model_state_dict

    tensors = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(adapter, {name: tensor.float() for name, tensor in tensors.items()})


def with_adapter(model: PreTrainedModel, lora: Lora) -> Any:
    """Put an adapter on every linear layer of `model`, in fp32."""
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name in LINEAR_NAMES if name in names],
        task_type="CAUSAL_LM",
    )
    adapter = get_peft_model(model, config)
    for module in adapter.modules():
        # Autocast does the casting; peft's own would send every activation through fp32.
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapter
