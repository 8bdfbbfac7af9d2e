"""Adds an adapter to its base, which stays a plain model, no slower than before.

Plain LoRA, which is what our trainer writes, is added in one pass over the weights; any other adapter goes through
peft, which takes three times as long.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

PREFIX = "base_model.model."
# Settings that make a LoRA more than two matrices beside a linear layer, unless they are empty.
EXTRAS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)


def merge_adapter(network: PreTrainedModel, folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return `network` with the adapter in `folder` added; layers it changes come out as `dtype`."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    if not _is_plain_lora(config, tensors):
        return _merged_by_peft(network, folder)
    names = _layer_names(network, config["target_modules"])
    expected = {f"{PREFIX}{name}.lora_{side}.weight" for name in names for side in "AB"}
    if expected != set(tensors):
        odd = sorted(expected ^ set(tensors))
        raise ValueError(f"its weights do not fit the base's layers: {len(odd)} differ, among them {odd[0]}")
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    with torch.no_grad(), _one_thread():
        for name in names:
            down, up = (tensors[f"{PREFIX}{name}.lora_{side}.weight"].float() for side in "AB")
            _add(network.get_submodule(name), down, up, scaling, dtype)
    return network


def _is_plain_lora(config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    return (
        config.get("peft_type") == "LORA"
        and isinstance(config.get("target_modules"), list)
        and config.get("bias", "none") == "none"
        and not any(config.get(name) for name in EXTRAS)
        and all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    )


def _layer_names(network: PreTrainedModel, targets: list[str]) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]


def _add(layer: nn.Module, down: Tensor, up: Tensor, scaling: float, dtype: torch.dtype) -> None:
    """Add up @ down to the layer's weight; Conv1D, GPT-2's kind of layer, holds it transposed."""
    weight = cast(Tensor, layer.weight).float()
    first, second = (down.T, up.T) if isinstance(layer, Conv1D) else (up, down)
    layer.weight = nn.Parameter(torch.addmm(weight, first, second, alpha=scaling).to(dtype), requires_grad=False)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Hundreds of small products: threads waiting for each other took 8 s instead of 0.5 s beside another program."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _merged_by_peft(network: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about names in transformers 6
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged: PreTrainedModel = PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    return merged
