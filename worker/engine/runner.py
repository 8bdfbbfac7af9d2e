"""Turns chunks of sequences into the scores of their next tokens. Owns the networks and their caches; knows no queues.

`RaggedRunner` computes all chunks in one forward pass. `SequentialRunner` is for models whose attention it can't
replace: one forward pass per chunk, with the model's own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import structlog
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.engine.agreement import check_agreement
from worker.engine.attention import RaggedStep, Span
from worker.engine.cache import KVCache
from worker.engine.graphs import Cell, Graphs, Outputs, Recorder, cuda_recorder
from worker.engine.models import Network, network_for
from worker.engine.models.general import General, accepts
from worker.engine.models.general import vocabulary_size as vocabulary_size
from worker.engine.models.gpt2 import Gpt2
from worker.engine.prefix import MAX_SAVED_BYTES, PrefixCounts, PrefixMemory
from worker.engine.request import Chunk

log = structlog.get_logger(__name__)

MAX_WINDOW = 2048
# Gives the token types of a sequence, for layouts that have them.
TokenTypes = Callable[[Sequence[int]], list[int] | None]


class Computed(NamedTuple):
    """What comes after the n chunks that end their sequences: the scores of the next token (n, V) and, where there is
    a next-utterance head, how well each sequence's end continues it (n,)."""

    logits: Tensor
    fits: Tensor | None = None


class Runner(Protocol):
    """Computes chunks."""

    prefix_counts: PrefixCounts

    @property
    def vocabulary_size(self) -> int: ...

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Make `slot` ready for a sequence that begins with `ids`; return how many of them it holds (< len(ids))."""

    def run(self, chunks: Sequence[Chunk]) -> Computed:
        """Compute `chunks`; return what comes after those that are the last of their sequence, in order."""

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """The sequence in `slot` has ended; what was computed of it are `ids`."""


def model_window(model: PreTrainedModel) -> int:
    """The number of tokens the model has positions for, at most `MAX_WINDOW`."""
    config = model.config.get_text_config()
    return min(getattr(config, "max_position_embeddings", None) or MAX_WINDOW, MAX_WINDOW)


def make_runner(
    model: PreTrainedModel,
    *,
    max_num_seqs: int,
    window: int,
    dtype: torch.dtype | None = None,
    frees_weights: bool = False,
    max_saved_bytes: int = MAX_SAVED_BYTES,
    token_types: TokenTypes | None = None,
    head: nn.Module | None = None,
    cuda_graphs: bool = False,
) -> Runner:
    """Return the fastest runner that computes what the model computes, with weights in `dtype` where it packs them.

    With `frees_weights` it keeps the packed weights only, and the model can't compute any more. With `token_types`
    the model is given those too. `head` (…, E) → (…, 1) scores the last states. `cuda_graphs`: on a GPU, record steps.
    """
    dtype, device = dtype or model.dtype, model.device

    def ragged(network: Network, *, is_recorded: bool) -> RaggedRunner:
        return RaggedRunner(
            network,
            device=device,
            max_num_seqs=max_num_seqs,
            window=window,
            max_saved_bytes=max_saved_bytes,
            token_types=token_types,
            head=head,
            start_recorder=partial(cuda_recorder, device) if is_recorded and device.type == "cuda" else None,
        )

    own = network_for(model, dtype=dtype)
    if token_types is not None and not isinstance(own, Gpt2):
        return SequentialRunner(model, token_types, head)
    if own is not None:
        runner = ragged(own, is_recorded=cuda_graphs)
        if frees_weights:
            cast(Any, model).to("meta")
        return runner
    family = model.config.model_type
    if dtype is not model.dtype:
        log.warning("this family has no packed weights", model=family, asked=str(dtype), used=str(model.dtype))
    before = model.config._attn_implementation
    try:
        runner = ragged(General(model, needs_states=head is not None), is_recorded=False)
        check_agreement(model, runner, before)
    except Exception as error:
        log.warning("no batched runner for this model, one request at a time", model=family, why=str(error))
        model.set_attn_implementation(before)
        return SequentialRunner(model, head=head)
    return runner


class RaggedRunner:
    """One forward pass over the tokens of all chunks, without padding."""

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device,
        max_num_seqs: int,
        window: int,
        max_saved_bytes: int = MAX_SAVED_BYTES,
        token_types: TokenTypes | None = None,
        head: nn.Module | None = None,
        start_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self._network = network
        self._head = head
        self._token_types = token_types
        self._device = device
        # A CPU attends with single queries much faster in fp32, whatever the weights are.
        dtype = torch.float32 if device.type == "cpu" else None
        self._cache = KVCache(max_num_rows=max_num_seqs, max_num_tokens=window, dtype=dtype)
        self._memory = PrefixMemory(self._cache, num_rows=max_num_seqs, max_saved_bytes=max_saved_bytes)
        self.prefix_counts = self._memory.counts
        self._graphs = start_recorder and Graphs(
            network, self._cache, device=device, start_recorder=start_recorder, has_types=token_types is not None
        )

    @property
    def vocabulary_size(self) -> int:
        """The number of scores per token."""
        return self._network.vocabulary_size

    @torch.inference_mode()
    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Take over or copy what is known of `ids`, from sequences that ended or run."""
        return self._memory.attach(slot, ids)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Computed:
        """Compute `chunks` together."""
        logits, states = self._replayed(chunks) or self._compute(chunks)
        for chunk in chunks:
            self._memory.computed(_slot(chunk), chunk.sequence.ids, chunk.end)
        return Computed(logits.float(), _fits(self._head, states))

    def _replayed(self, chunks: Sequence[Chunk]) -> Outputs | None:
        """What a recorded step gives, where one fits: a token for each sequence, and nothing else to compute."""
        if self._graphs is None or not all(chunk.num_tokens == 1 and chunk.is_last for chunk in chunks):
            return None
        types = self._types(chunks) or [0] * len(chunks)
        return self._graphs.run(
            [
                Cell(self._memory.row_of(_slot(chunk)), chunk.ids[0], chunk.start, token_type)
                for chunk, token_type in zip(chunks, types, strict=True)
            ]
        )

    def _compute(self, chunks: Sequence[Chunk]) -> Outputs:
        placed = sorted(
            ((chunk.num_tokens > 1, self._memory.row_of(_slot(chunk)), chunk) for chunk in chunks),
            key=lambda item: item[:2],
        )
        spans: list[Span] = []
        ids: list[int] = []
        ends: dict[int, int] = {}
        for _, row, chunk in placed:
            spans.append(Span(len(ids), chunk.num_tokens, row, chunk.start))
            ids += chunk.ids
            ends[id(chunk)] = len(ids) - 1
        columns = torch.tensor(
            [
                ids,
                [position for span in spans for position in range(span.start, span.end)],
                [span.row for span in spans for _ in range(span.num_tokens)],
                self._types([chunk for _, _, chunk in placed]) or [0] * len(ids),
            ]
        ).to(self._device, non_blocking=True)
        last = torch.tensor([ends[id(chunk)] for chunk in chunks if chunk.is_last], dtype=torch.long)
        step = RaggedStep(spans, rows=columns[2], positions=columns[1], cache=self._cache)
        types = {} if self._token_types is None else {"token_types": columns[3]}
        return self._network(columns[0], columns[1], last.to(self._device, non_blocking=True), step, **types)

    def _types(self, chunks: Sequence[Chunk]) -> list[int]:
        """The types of all tokens; none where the layout has none."""
        if self._token_types is None:
            return []
        return [token_type for chunk in chunks for token_type in _types_of(chunk, self._token_types)]

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """Keep what was computed, until the row is needed."""
        self._memory.release(slot, ids)


class SequentialRunner:
    """One forward pass per chunk with the model's own cache, and without a cache where the model has none."""

    def __init__(
        self, model: PreTrainedModel, token_types: TokenTypes | None = None, head: nn.Module | None = None
    ) -> None:
        self._model = model
        self._token_types = token_types
        self._head = head
        self._states: dict[int, tuple[Any, int]] = {}
        self._options: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
        if head is not None:
            self._options["output_hidden_states"] = True
        self.prefix_counts = PrefixCounts()

    @property
    def vocabulary_size(self) -> int:
        """The number of scores per token."""
        return vocabulary_size(self._model)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Computed:
        """Compute `chunks` one after the other."""
        computed = [(chunk.is_last, self._run_one(chunk)) for chunk in chunks]
        wanted = [row for is_last, row in computed if is_last]
        if not wanted:
            return Computed(torch.empty((0, self.vocabulary_size)))
        logits, states = zip(*wanted, strict=True)
        return Computed(torch.stack(logits), _fits(self._head, None if states[0] is None else torch.stack(states)))

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        """Nothing is there: every sequence is computed from its beginning."""
        return 0

    def release(self, slot: int, ids: Sequence[int]) -> None:
        """Drop the slot's cache."""
        self._states.pop(slot, None)

    def _run_one(self, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """Return the scores (V,) and, where a head asks for it, the state (E,) after the chunk."""
        state, num_cached = self._states.pop(_slot(chunk), (None, 0))
        options: dict[str, Any] = dict(self._options)
        if state is not None and num_cached == chunk.start:
            options["past_key_values"] = state
            ids = chunk.ids
        else:  # after a step that failed, or with a model that keeps no such cache
            ids = chunk.sequence.ids[: chunk.end]
        if self._token_types is not None:
            types = (self._token_types(chunk.sequence.ids[: chunk.end]) or [])[-len(ids) :]
            options["token_type_ids"] = torch.tensor([types], device=self._model.device)
        output = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=True, **options)
        state = getattr(output, "past_key_values", None)
        if state is not None:
            self._states[_slot(chunk)] = state, chunk.end
        return output.logits[0, -1].float(), None if self._head is None else output.hidden_states[-1][0, -1]


def _fits(head: nn.Module | None, states: Tensor | None) -> Tensor | None:
    return None if head is None or states is None else head(states.float())[:, 0]


def _types_of(chunk: Chunk, token_types: TokenTypes) -> list[int]:
    """What a token's type is depends on all tokens before it."""
    return (token_types(chunk.sequence.ids[: chunk.end]) or [])[chunk.start :]


def _slot(chunk: Chunk) -> int:
    assert chunk.sequence.slot is not None
    return chunk.sequence.slot
