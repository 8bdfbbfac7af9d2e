"""Going on from a checkpoint with new text: what it was trained on is mixed in, so that it forgets less.

Turns the configuration that a person asks for into the one that is run; trains nothing itself.
"""

from __future__ import annotations

import tomllib
from typing import Any

from personas.checkpoint import is_checkpoint, read_checkpoint
from personas.layout import load_layout
from trainer.config import ConfigError, Source, TrainConfig
from trainer.layouts import resolve_base

CONFIG_FILE = "train.toml"
# Enough of the old data to hold what was learnt from it, little enough to learn something new.
REPLAY = 0.2
# Lower than where everything is still to be learnt.
RATES = {"full": 2e-4, "adapter": 5e-4}


def settled(flags: dict[str, Any]) -> dict[str, Any]:
    """Return flags with what a base that is a checkpoint of ours decides where they are silent."""
    folder = resolve_base(flags["base"]) if flags.get("base") else None
    if folder is None or not is_checkpoint(folder):
        return flags
    checkpoint, layout = read_checkpoint(folder), load_layout(folder)
    return {
        "layout": layout.name,
        "max_tokens": layout.max_tokens,
        "generation": checkpoint.generation,
        "replay": REPLAY,
        "learning_rate": RATES[checkpoint.kind],
        **flags,
    }


def with_replay(config: TrainConfig) -> TrainConfig:
    """Return `config` with the checkpoint's own data mixed in, and its validation data looked at before and after.

    `replay` is the share of the dialogues drawn from what the checkpoint was trained on; where it is not set, or the
    base is no checkpoint of ours, nothing changes. Raises `ConfigError` where that data is not here any more.
    """
    if config.replay is None or not config.base:
        return config
    folder = resolve_base(config.base)
    if not (is_checkpoint(folder) and (folder / CONFIG_FILE).is_file()):
        return config
    old = TrainConfig.model_validate(tomllib.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    known = {source.path.absolute() for source in config.data}
    replayed = [source for source in old.data if source.path.absolute() not in known]
    missing = [str(source.path) for source in replayed if not source.path.exists()]
    if config.replay and missing:
        raise ConfigError(
            f"{folder}: what it was trained on is not here: {', '.join(missing)}. Put it there, or go on without a "
            "guard against forgetting: --replay 0."
        )
    valid = (*config.valid, *(source for source in old.valid if source.path.exists()))
    data = config.data
    if config.replay and replayed:
        data = (*_scaled(config.data, 1 - config.replay), *_scaled(replayed, config.replay))
    first = {source.path.absolute(): source for source in reversed(valid)}
    return config.model_copy(update={"data": data, "valid": tuple(reversed(first.values())), "valid_first": True})


def _scaled(sources: tuple[Source, ...] | list[Source], share: float) -> list[Source]:
    """Return the sources with their shares in the same ratio, adding up to `share`."""
    total = sum(source.share for source in sources)
    return [source.model_copy(update={"share": source.share / total * share}) for source in sources]
