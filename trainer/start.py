"""What a run begins with, built as its configuration says: device, model, stream of batches, and its length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers

from personas.conversation import Role
from personas.layout import Layout
from trainer.config import ConfigError, TrainConfig
from trainer.data import Corpus, Stream
from trainer.layouts import resolve_base
from trainer.model import TrainingModel, token_types
from worker.head import load_head

# A pass over more than this many dialogues is not counted but estimated from so many of them.
MAX_COUNTED = 2000
SHARE_OF_FREE_GPU_MEMORY = 0.8  # where the settings do not say
# With fewer replies the same few would stand beside every right one.
MIN_REPLIES = 50
# Where none is given: all weights of a base have most to lose.
RATES = {"scratch": 1e-3, "adapter": 1e-3, "base": 5e-5}


def limit_memory(device: torch.device, share: float | None) -> None:
    """Keep this process to a share of the GPU's memory, so that who answers people there keeps the rest.

    Beyond it torch raises `OutOfMemoryError`. On a CPU, or where `share` is None, nothing is limited.
    """
    if share is None or device.type != "cuda":
        return
    place = device.index if device.index is not None else torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(place)
    torch.cuda.set_per_process_memory_fraction(memory_share(share, free, total), place)


def memory_share(asked: float, free: int, total: int) -> float:
    """Return the share of `total` bytes that may be taken: as asked, or for 0 four fifths of what is free.

    >>> memory_share(0.0, 50, 100), memory_share(0.25, 50, 100)
    (0.4, 0.25)
    """
    return asked or SHARE_OF_FREE_GPU_MEMORY * free / total


def build_model(config: TrainConfig, layout: Layout, device: torch.device) -> TrainingModel:
    """Build the model from scratch or from its base, with the second head where there are candidates.

    Raises `LayoutError` where the layout has token types and the model takes none.
    """
    limit_memory(device, config.gpu_share)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model = (
        TrainingModel.from_base(config, layout)
        if config.base
        else TrainingModel.from_scratch(config.scratch, layout, config.generation)
    )
    if config.num_candidates > 1:
        model.add_choice_head(load_head(resolve_base(config.base)) if config.base else None)
    if config.gradient_checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    token_types(model.model, layout, torch.tensor([[layout.pad_id]]))  # refuses a model that takes none
    model.to(device)
    return model


def build_stream(config: TrainConfig, corpora: Sequence[Corpus], layout: Layout) -> Stream:
    """Return the run's batches; raise `ConfigError` where there is too little to choose candidates from."""
    if config.num_candidates > 1:
        num_replies = sum(turn.role is Role.BOT for c in corpora for d in c.dialogues for turn in d.turns)
        if layout.name == "corpus" or num_replies < MIN_REPLIES:
            raise ConfigError(
                f"num_candidates: needs dialogue with at least {MIN_REPLIES} replies; the data has {num_replies}, "
                f"in the layout {layout.name}. Leave it at 1."
            )
    return Stream(
        corpora,
        layout,
        seed=config.seed,
        micro_tokens=config.micro_tokens,
        max_tokens=config.max_tokens,
        loss_on=config.loss_on,
        num_candidates=config.num_candidates,
        max_history=config.max_history,
    )


def resolved(config: TrainConfig, stream: Stream, model: TrainingModel) -> TrainConfig:
    """Return the configuration with its learning rate, and with `epochs` told as `train_tokens`."""
    kind = "adapter" if model.adapter is not None else "base" if config.base else "scratch"
    config = config.model_copy(update={"learning_rate": config.learning_rate or RATES[kind]})
    if config.epochs is None:
        return config
    num_tokens = config.epochs * stream.num_pass_tokens(MAX_COUNTED)
    return config.model_copy(update={"train_tokens": max(round(num_tokens), 1)})
