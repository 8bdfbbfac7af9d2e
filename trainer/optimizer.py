"""What moves the weights: the optimizer and the learning rate's course over a run. Knows parameters, not data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

# By these the names of embeddings and output heads are known.
EMBEDDINGS = ("wte", "wpe", "embed", "lm_head", "multiple_choice_head")


class Optimizer:
    """One or two of torch's optimizers behind one face; each parameter belongs to exactly one of them.

    `adamw` moves everything. `muon` moves the matrices of the layers by Muon (Jordan et al. 2024, with the update
    scaled to AdamW's as in Liu et al. 2025, arXiv:2502.16982, so that one learning rate does for both) and the
    embeddings and vectors by AdamW; it is meant for training from scratch.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: TrainConfig, device: str = "cpu") -> None:
        assert config.learning_rate is not None  # settled when the run was prepared
        self.rate = config.learning_rate
        self.is_scaled = config.dtype == "fp16"
        # fp16 has so few exponents that small gradients vanish unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(device, enabled=self.is_scaled)
        matrices: list[nn.Parameter] = []
        embeddings: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        self.parameters: list[nn.Parameter] = []
        for name, parameter in named:
            self.parameters.append(parameter)
            is_embedding = any(part in name for part in EMBEDDINGS)
            kind = vectors if parameter.dim() < 2 else embeddings if is_embedding else matrices
            kind.append(parameter)
        has_muon = config.optimizer == "muon"
        adamw_groups = [
            {"params": embeddings + ([] if has_muon else matrices), "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adamw_groups, lr=self.rate, betas=(0.9, 0.95), fused=True)
        ]
        if has_muon:
            self.parts.append(
                torch.optim.Muon(
                    matrices, lr=self.rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                )
            )

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to the parameters'."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to a total norm of `max_norm` where it is greater; return the norm before."""
        for part in self.parts:
            self.scaler.unscale_(part)
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, max_norm))

    def step(self, factor: float) -> None:
        """Move the parameters at `factor` times the configured learning rate, and clear their gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.rate * factor
            self.scaler.step(part)
            part.zero_grad(set_to_none=True)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on."""
        return {"parts": [part.state_dict() for part in self.parts], "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
        self.scaler.load_state_dict(state["scaler"])


def schedule(progress: float, *, warmup: float, decay: float) -> float:
    """The learning rate's factor at `progress` (0 to 1): up, level, then linearly down to zero.

    A level stretch lets a run be lengthened or cut short without having been planned so (Hu et al. 2024, MiniCPM).
    """
    if progress < warmup:
        return progress / warmup
    if progress > 1 - decay:
        return max((1 - progress) / decay, 0.0)
    return 1.0
