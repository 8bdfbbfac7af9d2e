"""The LoRA adapter of a run, through peft: put on a model, and taken up again from a checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainer.config import Lora


def adapter_shape(folder: Path) -> Lora:
    """Return the shape of a checkpoint's adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Lora(rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0))


def load_adapter(adapter: Any, folder: Path) -> None:
    """Put a checkpoint's weights into an adapter of the same shape."""
    from peft import set_peft_model_state_dict

    tensors = load_file(folder / "adapter_model.safetensors")
    set_peft_model_state_dict(adapter, {name: tensor.float() for name, tensor in tensors.items()})


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return what the linear layers of `model` are called at the end of their names, without the output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def with_adapter(model: PreTrainedModel, lora: Lora) -> Any:
    """Put an adapter on every linear layer of `model` but the output head, in fp32."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=linear_names(model),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft asks by a name that goes with transformers 6
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapter = get_peft_model(model, config)
    for module in adapter.modules():
        # Autocast does the casting; peft's own would send every activation through fp32.
        if hasattr(module, "cast_input_dtype_enabled"):
            setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapter
