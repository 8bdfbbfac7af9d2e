"""What a training run is told: one model, read from a TOML file and flags. Unknown keys are errors."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personas.errors import PersonabotError
from personas.persona import GenerationSettings


class ConfigError(PersonabotError):
    """A training configuration has unknown or impossible values; lists all of them."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """One data file and how it is used; `share` is its part of the dialogues drawn."""

    path: Path
    format: str | None = None
    speaker: str = Field("", description="whose lines the bot learns, where people have names")
    split: str = Field("", description="which part is read of a file that holds several; else train, or valid")
    share: float = Field(1.0, gt=0)
    licence: str = ""
    both_sides: bool | None = Field(
        None, description="also train the first speaker's side; absent: where that one has facts, or nobody has any"
    )
    spaced: float = Field(
        0.0, ge=0, le=1, description="share written with spaces around punctuation, as ConvAI2's files are"
    )
    named: float = Field(0.0, ge=0, le=1, description="share that is given a name where the data has none")
    questions: float = Field(0.0, ge=0, le=1, description="share with inserted questions about the persona")
    shuffle_facts: bool = Field(False, description="another order of the facts each time a dialogue comes")
    drop_facts: float = Field(0.0, ge=0, le=1, description="greatest share of facts left out at random")


class ScratchModel(_Strict):
    """The shape of a GPT-2 trained from scratch."""

    num_layers: int = Field(6, ge=1)
    hidden_size: int = Field(384, ge=8)
    num_heads: int = Field(6, ge=1)
    vocabulary: int = Field(8192, ge=300, description="size of the byte-level BPE trained on the data")
    dropout: float = Field(0.0, ge=0, lt=1)


class Lora(_Strict):
    """Low-rank adaptation of every linear layer (Hu et al. 2021), through peft."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(16, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class TrainConfig(_Strict):
    """Everything that determines a run. `base` absent means from scratch."""

    name: str = "model"
    notes: str = Field("", description="what else the model card should say of the training")
    base: str | None = None
    layout: Literal["persona", "chat", "convai", "dialogpt", "corpus"] = "persona"
    max_tokens: Annotated[int, Field(ge=32, description="window: the longest sequence, in tokens")] = 512
    lora: Lora | None = None
    scratch: ScratchModel = ScratchModel()
    data: tuple[Source, ...] = Field(min_length=1)
    valid: tuple[Source, ...] = ()
    replay: float | None = Field(
        None, ge=0, lt=1, description="where base is a checkpoint of ours: share of its own data mixed in"
    )
    loss_on: Literal["bot", "both"] = Field("bot", description="whose turns are targets")
    max_history: int | None = Field(
        None, ge=0, description="an example a reply, behind 2 * max_history + 1 turns; absent: all turns in one example"
    )
    num_candidates: int = Field(1, ge=1, le=50, description="above 1: also learn which of so many replies is right")
    lm_coef: float = Field(1.0, ge=0, description="weight of the language-model loss")
    mc_coef: float = Field(1.0, ge=0, description="weight of the next-utterance loss")
    epochs: float | None = Field(None, gt=0, description="length of the run in passes over the data, not in tokens")
    train_tokens: int = Field(1_000_000, ge=1, description="length of the run, in processed tokens")
    batch_tokens: int = Field(4096, ge=64, description="processed tokens of an optimizer step")
    micro_tokens: int = Field(4096, ge=64, description="padded tokens of one forward pass")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for training from scratch")
    learning_rate: float | None = Field(
        None, gt=0, description="absent: 1e-3 from scratch and for an adapter, 5e-5 for all weights of a base"
    )
    warmup: float = Field(0.03, ge=0, le=1, description="share of the run in which the rate rises")
    decay: float = Field(
        0.4, ge=0, le=1, description="share of the run, at its end, in which it falls linearly to zero"
    )
    weight_decay: float = Field(0.01, ge=0)
    max_norm: float = Field(1.0, gt=0)
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    device: str = "auto"
    seed: int = 1
    track: tuple[Literal["tensorboard", "comet", "wandb"], ...] = Field(
        (), description="where the log goes besides log.jsonl"
    )
    save_minutes: float = Field(5.0, gt=0)
    valid_minutes: float = Field(
        20.0, gt=0, description="time between looks at the validation data; one comes at the end"
    )
    valid_steps: int | None = Field(None, ge=1, description="look every so many steps instead")
    valid_first: bool = Field(False, description="look before the first step too")
    valid_dialogues: int = Field(50, ge=1)
    valid_micro_tokens: int = Field(8192, ge=64, description="padded tokens of a forward pass over validation data")
    patience: int | None = Field(None, ge=1, description="stop after so many looks without lower bits per byte")
    gpu_share: float | None = Field(
        None, ge=0, le=1, description="share of the GPU's memory the run may take; 0: four fifths of what is free then"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice to hold fewer of them")
    generation: GenerationSettings = GenerationSettings()


def load_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Read `path` (TOML), lay `overrides` on top, check everything; raise `ConfigError` with all problems."""
    try:
        return TrainConfig.model_validate(laid_over(read_toml(path) if path else {}, overrides))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"])) or "config"
            where = path if path and key.split(".")[0] not in overrides else "flags"
            lines.append(f"{where}: {key}: {problem['msg']}")
        raise ConfigError("\n".join(lines)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a configuration file holds, unchecked; raise `ConfigError` where it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of both, those of `above` where both have them; tables are laid over each other.

    >>> laid_over({"seed": 1, "lora": {"rank": 8, "alpha": 8}}, {"lora": {"rank": 4}})
    {'seed': 1, 'lora': {'rank': 4, 'alpha': 8}}
    """
    both = {
        key: laid_over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def setting(text: str) -> dict[str, Any]:
    """Return "key=value" as a configuration file would have it; raise `ConfigError` where it is none.

    The value is TOML, or a text without its quotes; a dot leads into a table.

    >>> setting("optimizer=muon"), setting("lora.rank=4"), setting('track=["wandb"]')
    ({'optimizer': 'muon'}, {'lora': {'rank': 4}}, {'track': ['wandb']})
    """
    key, equals, value = text.partition("=")
    for spelled in (value, json.dumps(value, ensure_ascii=False)) if equals else ():
        try:
            return tomllib.loads(f"{key} = {spelled}")
        except tomllib.TOMLDecodeError:
            continue
    raise ConfigError(f"--set {text}: expected key=value, such as weight_decay=0.1")
