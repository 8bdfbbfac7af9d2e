"""Which layout and tokenizer a run has: its base's own, the base's with tokens added, or one trained on the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from personas.checkpoint import is_checkpoint
from personas.errors import CheckpointError
from personas.layout import LAYOUTS, PERSONA_TOKENS, Layout, load_layout
from trainer.config import ConfigError, TrainConfig
from trainer.data import Corpus
from trainer.tokenizer import train_tokenizer

# The layouts that mark speakers with tokens of ours.
WITH_SPEAKERS = ("persona", "convai")


@cache
def resolve_base(base: str) -> Path:
    """Return the folder of a base told by its name, folder or hub id; raise `CheckpointError` where there is none."""
    from worker.loading import model_folder

    return model_folder(base)


def layout_of(model: str) -> Layout:
    """Return the layout a model is served with, without its weights; "" is the default model."""
    from transformers import AutoConfig

    from worker.engine.runner import MAX_WINDOW
    from worker.loading import model_folder
    from worker.plain_folder import plain_layout

    folder = model_folder(model)
    if is_checkpoint(folder):
        return load_layout(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder)).get_text_config()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: not a model of transformers ({str(error).splitlines()[0]})") from error
    window = min(getattr(config, "max_position_embeddings", None) or MAX_WINDOW, MAX_WINDOW)
    return plain_layout(folder, max_tokens=window)


def build_layout(config: TrainConfig, corpora: Sequence[Corpus], folder: Path) -> Layout:
    """Return the run's layout, with the `tokenizer.json` that is kept in `folder` once a run has begun.

    Raises `ConfigError` where the base does not go with the layout.
    """
    base = resolve_base(config.base) if config.base else None
    if base and is_checkpoint(base):
        return _continued(config, base)
    if config.layout == "chat":
        if base is None:
            raise ConfigError("layout: chat needs a base with a chat template; from scratch, use persona")
        if not (base / "tokenizer.json").is_file():
            raise ConfigError(f"layout: chat needs a tokenizer.json, and {base} has none; use another layout")
        return LAYOUTS["chat"](base, max_tokens=config.max_tokens)
    if (folder / "tokenizer.json").is_file():
        return LAYOUTS[config.layout](folder, max_tokens=config.max_tokens)
    text = (
        base_tokenizer(base, has_speakers=config.layout in WITH_SPEAKERS, is_frozen=config.lora is not None)
        if base
        else train_tokenizer((d for c in corpora for d in c.dialogues), vocabulary=config.scratch.vocabulary)
    )
    return LAYOUTS[config.layout](text, max_tokens=config.max_tokens)


def _continued(config: TrainConfig, checkpoint: Path) -> Layout:
    own = load_layout(checkpoint)
    if own.name != config.layout:
        raise ConfigError(f"layout: {checkpoint} was trained with {own.name}; go on with that, not {config.layout}")
    return type(own)(checkpoint, max_tokens=min(config.max_tokens, own.max_tokens))


def base_tokenizer(base: Path, *, has_speakers: bool, is_frozen: bool) -> str:
    """Return the `tokenizer.json` of a base, with the tokens that mark speakers added where they are missing.

    Raises `ConfigError` where some are missing and the base's embeddings are frozen, so that nobody would learn them.
    """
    from worker.plain_folder import read_tokenizer

    tokenizer = read_tokenizer(base).backend_tokenizer
    missing = [token for token in PERSONA_TOKENS if has_speakers and tokenizer.token_to_id(token) is None]
    if missing and is_frozen:
        raise ConfigError(
            f"lora: {base} lacks the layout's tokens {', '.join(missing)}, and an adapter does not train new ones. "
            "Take --layout dialogpt, or chat for an instruct base; or train all weights, without --lora."
        )
    tokenizer.add_special_tokens(missing)
    text: str = tokenizer.to_str()
    return text
