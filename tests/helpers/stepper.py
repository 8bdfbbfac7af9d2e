"""For tests of the engine: its steps one by one, and the replies of `transformers` to compare with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from transformers import PreTrainedModel

from worker.engine.engine import Engine
from worker.engine.request import Chunk, Completion, SamplingParams
from worker.engine.runner import Computed

WAIT_S = 60
PLAIN_GREEDY = SamplingParams(do_sample=False, repetition_penalty=1.0, max_new_tokens=24)


class Stepper:
    """Stands before an engine's runner and lets a test decide when a step runs."""

    def __init__(self, engine: Engine) -> None:
        self.batches: list[list[Chunk]] = []
        self._inner = engine._runner
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.vocabulary_size = self._inner.vocabulary_size
        engine._runner = self

    def run(self, chunks: Sequence[Chunk]) -> Computed:
        self.batches.append(list(chunks))
        self._arrived.release()
        assert self._permits.acquire(timeout=WAIT_S)
        return self._inner.run(chunks)

    def attach(self, slot: int, ids: Sequence[int]) -> int:
        return self._inner.attach(slot, ids)

    def release(self, slot: int, ids: Sequence[int]) -> None:
        self._inner.release(slot, ids)

    def await_step(self) -> None:
        """Return when the engine stands before its next step."""
        assert self._arrived.acquire(timeout=WAIT_S)

    def allow(self, num_steps: int = 1) -> None:
        """Let the step that waits run, and the following ones up to `num_steps`."""
        self._permits.release(num_steps)


def generated_by_transformers(model: PreTrainedModel, prompt: Sequence[int], **options: object) -> tuple[int, ...]:
    reference = type(model)(model.config).eval()
    reference.load_state_dict(model.state_dict())
    reference.set_attn_implementation("eager")
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    out = reference.generate(ids, attention_mask=mask, pad_token_id=0, **options)
    return tuple(out[0, len(prompt) :].tolist())


def ids_of(future: Future[Completion]) -> tuple[int, ...]:
    return future.result(WAIT_S).ids
