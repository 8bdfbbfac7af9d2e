"""The named ways to retrain: how long, how fast, and whether all weights move or an adapter does. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from personas.persona import GenerationSettings
from personas.settings import Settings
from trainer.config import TrainConfig

# From here on an adapter is trained instead of all weights: less memory, and less is forgotten.
LARGE_BASE_BYTES: Final = 100_000_000
SAVE_MINUTES: Final = 1.0
MIN_STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """`passes` over the data, but at most `most_tokens`; the learning rates are for all weights and for an adapter.

    With `both_sides` the other speaker's turns are learnt as well, in data that has two sides.
    """

    passes: float
    most_tokens: int
    rate: float
    adapter_rate: float
    rank: int = 16
    both_sides: bool = True


RECIPES: Final = {
    "quick": Recipe(1, 300_000, rate=2e-4, adapter_rate=5e-4),
    "standard": Recipe(3, 3_000_000, rate=2e-4, adapter_rate=5e-4),
    "voice": Recipe(6, 1_000_000, rate=3e-4, adapter_rate=1e-3, both_sides=False),
}


@dataclass(frozen=True, slots=True)
class Base:
    """What a training starts from: `path` as the trainer takes it, `reference` as people know it.

    `num_bytes` is the size of its file of `num_weights` weights.
    """

    reference: str
    path: str
    layout: str
    max_tokens: int
    num_bytes: int
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    num_weights: int = 0

    @property
    def is_large(self) -> bool:
        """Whether an adapter is trained on it."""
        return self.num_bytes > LARGE_BASE_BYTES


def configuration(
    name: str,
    recipe_name: str,
    base: Base,
    *,
    train: Path,
    valid: Path,
    num_tokens: int,
    has_two_sides: bool,
    settings: Settings,
) -> TrainConfig:
    """Return the run's configuration for data of `num_tokens` tokens; device and trackers are those of `settings`."""
    recipe = RECIPES[recipe_name]
    both_sides = recipe.both_sides and has_two_sides
    train_tokens = max(int(min(recipe.passes * num_tokens * (1 + both_sides), recipe.most_tokens)), 1)
    batch_tokens = max(64, min(4096, train_tokens // MIN_STEPS))
    options: dict[str, Any] = {
        "name": name,
        "notes": f"Retrained by recipe {recipe_name} from {base.reference}.",
        "base": base.path,
        "layout": base.layout,
        "max_tokens": base.max_tokens,
        "lora": {"rank": recipe.rank, "alpha": recipe.rank} if base.is_large else None,
        "data": [{"path": train, "both_sides": both_sides}],
        "valid": [{"path": valid, "both_sides": False}],
        "train_tokens": train_tokens,
        "batch_tokens": batch_tokens,
        "micro_tokens": min(batch_tokens, 2048),
        "learning_rate": recipe.adapter_rate if base.is_large else recipe.rate,
        "save_minutes": SAVE_MINUTES,
        "device": settings.device if settings.device != "mps" else "cpu",
        "gpu_share": settings.training_gpu_share,
        "track": settings.trackers,
        "generation": base.generation.model_dump(exclude_none=True),
    }
    return TrainConfig.model_validate(options)
