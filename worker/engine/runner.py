"""Turns chunks of sequences into the scores of their next tokens. Owns the model and its caches; knows no queues.

`RaggedRunner` computes all chunks in one forward pass. `SequentialRunner` is for models whose attention it can't
replace: one forward pass per chunk, with the model's own cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import structlog
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.attention import ATTENTION, Span, Step, UnsupportedModel
from worker.engine.cache import SlotCache
from worker.engine.request import Chunk, Request
from worker.engine.request import Sequence as Running

log = structlog.get_logger(__name__)

MAX_WINDOW = 2048
# Covered by tests; any other family has to agree with its own forward pass before it is trusted.
PROVEN_TYPES = frozenset({"gpt2", "llama"})


class Runner(Protocol):
    """Computes chunks."""

    @property
    def vocabulary_size(self) -> int: ...

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute `chunks` and return the scores (n, V) after those that are the last of their sequence, in order."""

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Make `slot` ready for a sequence that begins with `ids`; return how many of them it holds (< len(ids))."""

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """The sequence in `slot` has ended; what was computed of it are `ids`."""


def model_window(model: PreTrainedModel) -> int:
    """The number of tokens the model has positions for, at most `MAX_WINDOW`."""
    config = model.config.get_text_config()
    return min(getattr(config, "max_position_embeddings", None) or MAX_WINDOW, MAX_WINDOW)


def make_runner(model: PreTrainedModel, *, max_num_seqs: int, window: int) -> Runner:
    """Return the fastest runner that computes what the model computes."""
    before = model.config._attn_implementation
    try:
        runner = RaggedRunner(model, max_num_seqs=max_num_seqs, window=window)
        if model.config.model_type not in PROVEN_TYPES:
            _check_agreement(model, runner, before)
    except Exception as error:
        log.warning(
            "no batched runner for this model, one request at a time", model=model.config.model_type, why=str(error)
        )
        model.set_attn_implementation(before)
        return SequentialRunner(model)
    return runner


class RaggedRunner:
    """One forward pass over the rows of all chunks, without padding."""

    def __init__(self, model: PreTrainedModel, *, max_num_seqs: int, window: int) -> None:
        model.set_attn_implementation(ATTENTION)
        self._model = model
        self._device = model.device
        # A CPU multiplies single rows much faster in fp32, whatever the weights are.
        dtype = torch.float32 if self._device.type == "cpu" else None
        self._cache = SlotCache(max_num_slots=max_num_seqs, max_num_tokens=window, dtype=dtype)
        self._can_choose_logits = _accepts(model, "logits_to_keep")

    @property
    def vocabulary_size(self) -> int:
        """The number of scores per token."""
        return vocabulary_size(self._model)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute `chunks` together."""
        order = sorted(chunks, key=lambda c: (c.num_tokens > 1, c.sequence.slot))
        spans, ends, offset = [], {}, 0
        for chunk in order:
            assert chunk.sequence.slot is not None
            spans.append(Span(offset, chunk.num_tokens, chunk.sequence.slot, chunk.start))
            offset += chunk.num_tokens
            ends[id(chunk)] = offset - 1
        rows = torch.tensor(
            [
                [token for chunk in order for token in chunk.ids],
                [position for span in spans for position in range(span.start, span.end)],
                [span.slot for span in spans for _ in range(span.num_rows)],
            ]
        ).to(self._device, non_blocking=True)
        last = [ends[id(chunk)] for chunk in chunks if chunk.is_last]
        step = Step(spans, slots=rows[2], positions=rows[1], cache=self._cache)
        logits = self._logits(rows[0], rows[1], torch.tensor(last, dtype=torch.long, device=self._device), step)
        if not step.num_layers_seen:
            raise UnsupportedModel("the model does not use the attention interface of transformers")
        return logits

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Nothing is there: every sequence is computed from its beginning."""
        return 0

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """Nothing to forget: the next sequence writes over it."""

    def _logits(self, ids: Tensor, positions: Tensor, last: Tensor, step: Step) -> Tensor:
        options: dict[str, Any] = {"logits_to_keep": last} if self._can_choose_logits else {}
        output = self._model(input_ids=ids[None], position_ids=positions[None], use_cache=False, step=step, **options)
        logits: Tensor = output.logits[0]
        return (logits if self._can_choose_logits else logits[last]).float()


class SequentialRunner:
    """One forward pass per chunk with the model's own cache, and without a cache where the model has none."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._states: dict[int, tuple[Any, int]] = {}
        self._options = {"logits_to_keep": 1} if _accepts(model, "logits_to_keep") else {}

    @property
    def vocabulary_size(self) -> int:
        """The number of scores per token."""
        return vocabulary_size(self._model)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute `chunks` one after the other."""
        logits = [(chunk.is_last, self._run_one(chunk)) for chunk in chunks]
        wanted = [row for is_last, row in logits if is_last]
        return torch.stack(wanted) if wanted else torch.empty((0, self.vocabulary_size))

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Nothing is there: every sequence is computed from its beginning."""
        return 0

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """Drop the slot's cache."""
        self._states.pop(slot, None)

    def _run_one(self, chunk: Chunk) -> Tensor:
        assert chunk.sequence.slot is not None
        state, num_cached = self._states.pop(chunk.sequence.slot, (None, 0))
        options = dict(self._options)
        if state is not None and num_cached == chunk.start:
            options["past_key_values"] = state
            ids = chunk.ids
        else:  # after a step that failed, or with a model that keeps no such cache
            ids = chunk.sequence.ids[: chunk.end]
        output = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=True, **options)
        state = getattr(output, "past_key_values", None)
        if state is not None:
            self._states[chunk.sequence.slot] = state, chunk.end
        row: Tensor = output.logits[0, -1].float()
        return row


def _accepts(model: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def vocabulary_size(model: PreTrainedModel) -> int:
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return int(head.weight.shape[0])


@torch.inference_mode()
def _check_agreement(model: PreTrainedModel, runner: RaggedRunner, attention: str) -> None:
    """Raise unless two short sequences, computed in pieces side by side, score as in the model's own forward pass."""
    num_ids = runner.vocabulary_size
    first, second = (Running(Request(prompt_ids=ids)) for ids in _two_prompts(num_ids))
    first.slot, second.slot = 0, 1
    runner.run([Chunk(first, 4)])
    first.num_cached_tokens = 4
    rows = [*runner.run([Chunk(first, 3), Chunk(second, 4)])]  # ends the first prompt, all but one of the second
    second.num_cached_tokens = 4
    rows += [*runner.run([Chunk(second, 1)])]
    model.set_attn_implementation(attention)
    for sequence, row in zip((first, second), rows, strict=True):
        own = model(input_ids=torch.tensor([sequence.ids], device=model.device)).logits[0, -1].float()
        tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(own.std())
        if not torch.allclose(row, own, atol=tolerance, rtol=0.0):
            raise UnsupportedModel("its scores in a batch differ from those of its own forward pass")
    model.set_attn_implementation(ATTENTION)


def _two_prompts(num_ids: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ids = [(7919 * i + 31) % num_ids for i in range(12)]
    return tuple(ids[:7]), tuple(ids[7:])
