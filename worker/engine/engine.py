"""The engine: one thread that owns the model and answers many requests at once.

Each turn of its loop reads: schedule, run, sample, publish. Knows neither conversations nor text.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

import structlog
from transformers import PreTrainedModel

from worker.engine.attempts import Attempts
from worker.engine.beam import BeamGroup, Continuation
from worker.engine.errors import DeadlinePassed, EngineError, EngineStopped, GenerationFailed
from worker.engine.prefix import PrefixCounts
from worker.engine.request import Chunk, Completion, FinishReason, Request, Sequence
from worker.engine.runner import Runner, TokenTypes, make_runner, model_window
from worker.engine.sampler import Choice, Sampler, Token
from worker.engine.scheduler import Scheduler
from worker.engine.threads import threads_for

if TYPE_CHECKING:
    import torch

    from worker.loading import LoadedModel

log = structlog.get_logger(__name__)

MAX_GENERATION_S = 60.0
NO_FINITE_SCORE = (
    "the model gave no finite score: its weights are damaged, or float16 is too narrow for it (try --dtype float32)"
)
Outcome = Completion | EngineError


class Engine:
    """Generates for up to `max_num_seqs` requests side by side; more wait.

    >>> with Engine(model, stop_ids={0}) as engine:
    ...     completion = engine.submit(Request(prompt_ids=(5, 6, 7))).result()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Iterable[int] = (),
        banned_ids: Iterable[int] = (),
        window: int | None = None,
        max_num_seqs: int = 16,
        max_num_waiting: int = 256,
        max_step_tokens: int = 512,
        max_generation_s: float = MAX_GENERATION_S,
        num_threads: int | None = None,
        dtype: torch.dtype | None = None,
        frees_weights: bool = False,
        token_types: TokenTypes | None = None,
    ) -> None:
        self.window = min(window or model_window(model), model_window(model))
        device = model.device  # before the runner may free its weights
        self._stop_ids = frozenset(stop_ids)
        self._runner: Runner = make_runner(
            model,
            max_num_seqs=max_num_seqs,
            window=self.window,
            dtype=dtype,
            frees_weights=frees_weights,
            token_types=token_types,
        )
        self._sampler = Sampler(banned_ids=banned_ids, stop_ids=self._stop_ids, device=device)
        self._scheduler = Scheduler(
            max_num_seqs=max_num_seqs,
            max_num_waiting=max_num_waiting,
            max_step_tokens=max_step_tokens,
            attach=self._attach,
        )
        self._attempts = Attempts(self._compute)
        self._searches: dict[Sequence, BeamGroup] = {}
        self._max_num_seqs = max_num_seqs
        self._max_generation_s = max_generation_s
        self._threads = threads_for(device, num_threads)
        # Guards the scheduler and the flags; never held while the model runs or a future's callbacks do.
        self._changed = threading.Condition()
        self._is_stopping = False
        self._is_draining = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @classmethod
    def for_model(cls, loaded: LoadedModel, **options: Any) -> Self:
        """Return an engine that stops and bans as the model's layout says."""
        return cls(
            loaded.model,
            stop_ids=loaded.layout.stop_ids,
            banned_ids=loaded.banned_ids,
            window=loaded.window,
            dtype=loaded.dtype,
            token_types=None if loaded.layout.token_types(()) is None else loaded.layout.token_types,
            **options,
        )

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
            request.check(self.window, self._runner.vocabulary_size, self._max_num_seqs)
            sequences.append(Sequence(request, leader=sequences[0] if sequences else None))
        with self._changed:
            if self._is_stopping or self._is_draining:
                raise EngineStopped("the engine is stopped")
            self._scheduler.add(*sequences)
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
    def num_running(self) -> int:
        """The number of requests that hold a slot."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return len(self._scheduler.waiting)

    @property
    def prefix_counts(self) -> PrefixCounts:
        """How much of what joined was not computed again."""
        return self._runner.prefix_counts

    @property
    def num_out_of_memory(self) -> int:
        """The number of steps that memory was too short for."""
        return self._attempts.num_out_of_memory

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _attach(self, sequence: Sequence) -> int:
        assert sequence.slot is not None
        return self._runner.attach(sequence.slot, sequence.ids)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
            self._end_all(EngineStopped("the engine was stopped before the reply was complete"))
        except Exception as error:  # a defect of ours: nobody may be left waiting for a thread that is gone
            log.exception("the engine's thread died")
            self._end_all(EngineStopped(f"the engine died: {error!r}. Restart the worker."))

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to compute; return False when it is time to end."""
        with self._changed:
            while not self._is_stopping:
                if self._scheduler.running or self._scheduler.waiting:
                    return True
                if self._is_draining:
                    return False
                self._changed.wait()
        return False

    def _step(self) -> None:
        self._end_overdue()
        with self._changed:
            chunks = self._scheduler.schedule()
        now = time.monotonic()
        for chunk in chunks:
            chunk.sequence.started_at = chunk.sequence.started_at or now
        if chunks:
            self._threads.adjust()
            self._publish(self._attempts.run(chunks))

    def _compute(self, chunks: list[Chunk]) -> list[Choice | GenerationFailed]:
        """Run and sample: a choice for each chunk that ends its sequence, None for the others."""
        ending = [chunk.sequence for chunk in chunks if chunk.is_last]
        choices = iter(self._sampler.choose(self._runner.run(chunks), ending))
        return [(next(choices) or GenerationFailed(NO_FINITE_SCORE)) if chunk.is_last else None for chunk in chunks]

    def _publish(self, computed: list[tuple[Chunk, Choice | GenerationFailed]]) -> None:
        """Append the tokens, and answer the requests that are complete."""
        for chunk, choice in computed:
            sequence = chunk.sequence
            if sequence.slot is None:  # ended meanwhile, with another beam of its search
                continue
            if isinstance(choice, GenerationFailed):
                self._end(sequence.root or sequence, choice)
                continue
            sequence.num_cached_tokens = chunk.end
            if isinstance(choice, Token):
                self._append(sequence, choice)
            elif choice is not None:
                self._branch(sequence, choice)

    def _append(self, sequence: Sequence, token: Token) -> None:
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

    def _branch(self, sequence: Sequence, continuations: list[Continuation]) -> None:
        """Go on with a beam search when all of its beams are computed."""
        root = sequence.root or sequence
        group = self._searches.get(root)
        if group is None:
            group = self._searches[root] = BeamGroup(root, stop_ids=self._stop_ids, window=self.window)
        if not group.offer(sequence, continuations):
            return
        root.first_token_at = root.first_token_at or time.monotonic()
        for beam, ids in group.advance(lambda: self._scheduler.fork(root)):
            assert beam.slot is not None
            self._runner.release(beam.slot, beam.ids[: beam.num_cached_tokens])
            beam.ids = ids
            beam.num_cached_tokens = self._runner.attach(beam.slot, ids)
        if group.search.is_over:
            self._end(root, group.completion(FinishReason.LENGTH))

    def _end_overdue(self) -> None:
        """End what was cancelled and what has had its time."""
        now = time.monotonic()
        with self._changed:
            everyone = self._scheduler.everyone()
        for sequence in everyone:
            ends = [sequence.deadline or now + 1.0, (sequence.started_at or now) + self._max_generation_s]
            if sequence.root is None and (sequence.future.cancelled() or min(ends) < now):
                self._end(sequence, self._so_far(sequence))

    def _so_far(self, sequence: Sequence) -> Outcome:
        if sequence in self._searches:
            return self._searches[sequence].completion(FinishReason.TIME)
        if sequence.num_new_tokens:
            return sequence.completion(FinishReason.TIME)
        return DeadlinePassed("the time for this reply was over before its first token")

    def _end_all(self, error: EngineStopped) -> None:
        with self._changed:
            self._is_stopping = True
            everyone = self._scheduler.everyone()
        for sequence in everyone:
            if sequence.root is None:
                self._end(sequence, error)

    def _end(self, sequence: Sequence, outcome: Outcome) -> None:
        """Free the slots of a request and tell whoever waits, unless they have cancelled."""
        group = self._searches.pop(sequence, None)
        for member in group.members if group else [sequence]:
            with self._changed:
                slot = member.slot
                self._scheduler.finish(member)
            if slot is not None:
                self._runner.release(slot, member.ids[: member.num_cached_tokens])
        if not sequence.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, EngineError):
            sequence.future.set_exception(outcome)
        else:
            sequence.future.set_result(outcome)
