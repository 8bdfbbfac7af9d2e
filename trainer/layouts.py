"""Which layout and tokenizer a run has: its base's own, the base's with tokens added, or one trained on the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from personas.checkpoint import is_checkpoint
from personas.layout import LAYOUTS, PERSONA_TOKENS, Layout, load_layout
from trainer.config import ConfigError, TrainConfig
from trainer.data import Corpus
from trainer.tokenizer import train_tokenizer
from worker.bases import HUB_IDS, base_folder

# The layouts that mark speakers with tokens of ours.
WITH_SPEAKERS = ("persona", "convai")


def resolve_base(base: str) -> str:
    """Turn a base's name, folder or hub id into what `from_pretrained` takes."""
    return str(base_folder(base)) if base in HUB_IDS else base


def layout_of(model: str) -> Layout:
    """Return the layout a model is served with, without its weights; "" is the default model."""
    from transformers import AutoConfig

    from worker.engine.runner import MAX_WINDOW
    from worker.loading import plain_layout, resolve_model

    folder = resolve_model(model)
    if isinstance(folder, Path) and is_checkpoint(folder):
        return load_layout(folder)
    config = AutoConfig.from_pretrained(str(folder)).get_text_config()
    window = min(getattr(config, "max_position_embeddings", None) or MAX_WINDOW, MAX_WINDOW)
    return plain_layout(Path(folder), max_tokens=window)


def build_layout(config: TrainConfig, corpora: Sequence[Corpus], folder: Path) -> Layout:
    """Return the run's layout, its `tokenizer.json` kept in `folder`; raise `ConfigError` where it cannot be."""
    if config.base and is_checkpoint(Path(config.base)):
        return _continued(config, Path(config.base))
    if config.layout == "chat":
        if config.base is None:
            raise ConfigError("layout: chat needs a base with a chat template; from scratch, use persona")
        return LAYOUTS["chat"](Path(resolve_base(config.base)), max_tokens=config.max_tokens)
    kept = folder / "tokenizer.json"
    if not kept.is_file():
        text = (
            base_tokenizer(config.base, has_speakers=config.layout in WITH_SPEAKERS)
            if config.base
            else train_tokenizer((d for c in corpora for d in c.dialogues), vocabulary=config.scratch.vocabulary)
        )
        kept.write_text(text, encoding="utf-8")
    return LAYOUTS[config.layout](folder, max_tokens=config.max_tokens)


def _continued(config: TrainConfig, checkpoint: Path) -> Layout:
    own = load_layout(checkpoint)
    if own.name != config.layout:
        raise ConfigError(f"layout: {checkpoint} was trained with {own.name}; go on with that, not {config.layout}")
    return type(own)(checkpoint, max_tokens=min(config.max_tokens, own.max_tokens))


def base_tokenizer(base: str, *, has_speakers: bool) -> str:
    """Return the `tokenizer.json` of a base, with the tokens that mark speakers added where they are missing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_base(base)).backend_tokenizer
    if has_speakers:
        tokenizer.add_special_tokens([token for token in PERSONA_TOKENS if tokenizer.token_to_id(token) is None])
    text: str = tokenizer.to_str()
    return text
