"""What every engine is from outside: requests go in, futures come out, and one thread does the work in between.

Owns that thread, and when a request ends; what a step computes, and with what, is the engine's own.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Self

import structlog

from worker.engine.errors import DeadlinePassed, EngineError, EngineStopped, GenerationFailed, RequestRefused
from worker.engine.prefix import PrefixCounts
from worker.engine.request import Completion, FinishReason, Request, Sequence
from worker.engine.sampler import Token
from worker.engine.threads import release_team

log = structlog.get_logger(__name__)

MAX_GENERATION_S = 60.0
Outcome = Completion | EngineError


class EngineLoop(ABC):
    """A queue, a thread, and the ways in which a request ends. A context manager."""

    has_head = False  # a next-utterance head, which `wants_fit` needs

    def __init__(self, *, window: int, stop_ids: Iterable[int], max_num_seqs: int, max_generation_s: float) -> None:
        self.window = window
        self._stop_ids = frozenset(stop_ids)
        self._max_num_seqs = max_num_seqs
        self._max_generation_s = max_generation_s
        # Guards who waits, who runs and the flags; never held while the model runs or a future's callbacks do.
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_draining = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request) -> Future[Completion]:
        """Let `request` wait for its turn. Cancelling the future ends it between two steps."""
        return self.submit_together([request])[0]

    def submit_together(self, requests: Iterable[Request]) -> list[Future[Completion]]:
        """Let requests with the same prompt wait: the first computes it, the others take it over from there."""
        sequences: list[Sequence] = []
        for request in requests:
            if request.wants_fit and not self.has_head:
                raise RequestRefused("this model has no next-utterance head")
            self._check(request)
            sequences.append(Sequence(request, leader=sequences[0] if sequences else None))
        with self._changed:
            if self._is_stopping or self._is_draining:
                raise EngineStopped("the engine is stopped")
            self._add(sequences)
            self._changed.notify()
        return [sequence.future for sequence in sequences]

    def stop(self, *, drain: bool = False, timeout_s: float = MAX_GENERATION_S) -> None:
        """End the thread: at once, or with `drain` after what was submitted is answered. May be called twice."""
        with self._changed:
            self._is_draining = True
            self._is_stopping |= not drain
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            with self._changed:
                self._is_stopping = True
                self._changed.notify()
            self._thread.join()

    @property
    @abstractmethod
    def num_running(self) -> int:
        """The number of requests that hold a slot."""

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """The number of requests that wait for a slot."""

    @property
    @abstractmethod
    def prefix_counts(self) -> PrefixCounts:
        """How much of what joined was not computed again."""

    @property
    @abstractmethod
    def num_out_of_memory(self) -> int:
        """The number of steps that memory was too short for."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def _check(self, request: Request) -> None:
        """Raise `RequestRefused` where it can never run."""

    @abstractmethod
    def _add(self, sequences: list[Sequence]) -> None:
        """Let them wait, all of them or none: `EngineBusy`. The caller holds the lock."""

    @abstractmethod
    def _everyone(self) -> list[Sequence]:
        """Return who waits or runs. The caller holds the lock."""

    @abstractmethod
    def _step(self) -> None:
        """Compute a token for whoever runs, and publish it."""

    @abstractmethod
    def _free(self, sequence: Sequence) -> None:
        """Take a request out, wherever it stands."""

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._end_overdue()
                self._step()
            self._end_all(EngineStopped("the engine was stopped before the reply was complete"))
        except Exception as error:  # a defect of ours: nobody may be left waiting for a thread that is gone
            log.exception("the engine's thread died")
            self._end_all(EngineStopped(f"the engine died: {error!r}. Restart the worker."))

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to compute; return False when it is time to end."""
        with self._changed:
            while not self._is_stopping:
                if self._everyone():
                    return True
                if self._is_draining:
                    return False
                release_team()
                self._changed.wait()
        return False

    def _append(self, sequence: Sequence, token: Token) -> None:
        """Add a token to a reply, and end it where that is the last one."""
        sequence.ids.append(token.id)
        sequence.log_prob += token.log_prob
        sequence.first_token_at = sequence.first_token_at or time.monotonic()
        if token.id in self._stop_ids:
            self._end(sequence, sequence.completion(FinishReason.STOP))
            return
        try:
            is_heard_out = sequence.request.on_token is not None and sequence.request.on_token(token.id)
        except Exception as error:  # whoever listens is no part of the engine, and may not end it
            log.exception("a listener failed")
            self._end(sequence, GenerationFailed(f"what listened to the reply failed: {error!r}"))
            return
        if is_heard_out:
            self._end(sequence, sequence.completion(FinishReason.HEARD))
        elif len(sequence.ids) >= sequence.max_tokens(self.window):
            self._end(sequence, sequence.completion(FinishReason.LENGTH))

    def _end_overdue(self) -> None:
        """End what was cancelled and what has had its time."""
        now = time.monotonic()
        with self._changed:
            everyone = self._everyone()
        for sequence in everyone:
            ends = [sequence.deadline or now + 1.0, (sequence.started_at or now) + self._max_generation_s]
            if sequence.root is None and (sequence.future.cancelled() or min(ends) < now):
                self._end(sequence, self._so_far(sequence))

    def _so_far(self, sequence: Sequence) -> Outcome:
        if sequence.num_new_tokens:
            return sequence.completion(FinishReason.TIME)
        return DeadlinePassed("the time for this reply was over before its first token")

    def _end_all(self, error: EngineStopped) -> None:
        with self._changed:
            self._is_stopping = True
            everyone = self._everyone()
        for sequence in everyone:
            if sequence.root is None:
                self._end(sequence, error)

    def _end(self, sequence: Sequence, outcome: Outcome) -> None:
        """Free what a request holds and tell whoever waits, unless they have cancelled."""
        self._free(sequence)
        if not sequence.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, EngineError):
            sequence.future.set_exception(outcome)
        else:
            sequence.future.set_result(outcome)
