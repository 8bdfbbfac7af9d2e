"""The engine: one thread (`loop.py`) that owns the model and answers many requests at once.

Each of its steps reads: schedule, run, sample, publish. Knows neither conversations nor text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import structlog
from transformers import PreTrainedModel

from worker.engine.attempts import Attempts
from worker.engine.beam import BeamGroup, Continuation
from worker.engine.errors import GenerationFailed
from worker.engine.loop import MAX_GENERATION_S, EngineLoop, Outcome
from worker.engine.prefix import MAX_SAVED_BYTES, PrefixCounts
from worker.engine.request import Chunk, FinishReason, Request, Sequence
from worker.engine.runner import Runner, TokenTypes, make_runner, model_window
from worker.engine.sampler import Choice, Fit, Sampler, Token
from worker.engine.scheduler import Scheduler
from worker.engine.threads import release_team, threads_for

if TYPE_CHECKING:
    import torch

    from worker.loading import LoadedModel

log = structlog.get_logger(__name__)

NO_FINITE_SCORE = (
    "the model gave no finite score: its weights are damaged, or float16 is too narrow for it (try --dtype float32)"
)


class Engine(EngineLoop):
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
        max_saved_bytes: int = MAX_SAVED_BYTES,
        token_types: TokenTypes | None = None,
        head: torch.nn.Module | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__(
            window=min(window or model_window(model), model_window(model)),
            stop_ids=stop_ids,
            max_num_seqs=max_num_seqs,
            max_generation_s=max_generation_s,
        )
        device = model.device  # before the runner may free its weights
        self._runner: Runner = make_runner(
            model,
            max_num_seqs=max_num_seqs,
            window=self.window,
            dtype=dtype,
            frees_weights=frees_weights,
            max_saved_bytes=max_saved_bytes,
            token_types=token_types,
            head=head,
            cuda_graphs=cuda_graphs,
        )
        self.has_head = head is not None
        release_team()
        self._sampler = Sampler(banned_ids=banned_ids, stop_ids=self._stop_ids, device=device)
        self._scheduler = Scheduler(
            max_num_seqs=max_num_seqs,
            max_num_waiting=max_num_waiting,
            max_step_tokens=max_step_tokens,
            attach=self._attach,
        )
        self._attempts = Attempts(self._compute)
        self._searches: dict[Sequence, BeamGroup] = {}
        self._threads = threads_for(device, num_threads)

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
            head=loaded.head,
            **options,
        )

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

    def _check(self, request: Request) -> None:
        request.check(self.window, self._runner.vocabulary_size, self._max_num_seqs)

    def _add(self, sequences: list[Sequence]) -> None:
        self._scheduler.add(*sequences)

    def _everyone(self) -> list[Sequence]:
        return self._scheduler.everyone()

    def _attach(self, sequence: Sequence) -> int:
        assert sequence.slot is not None
        return self._runner.attach(sequence.slot, sequence.ids)

    def _step(self) -> None:
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
        logits, fits = self._runner.run(chunks)
        choices = iter(self._sampler.choose(logits, ending, fits))
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
            elif isinstance(choice, Fit):
                self._end(sequence, sequence.completion(FinishReason.STOP, fit=choice.value))
            elif choice is not None:
                self._branch(sequence, choice)

    def _branch(self, sequence: Sequence, continuations: list[Continuation]) -> None:
        """Go on with a beam search when all of its beams are computed."""
        root = sequence.root or sequence
        group = self._searches.get(root)
        if group is None:
            group = self._searches[root] = BeamGroup(root, stop_ids=self._stop_ids, window=self.window)
        if not group.offer(sequence, continuations):
            return
        root.first_token_at = root.first_token_at or time.monotonic()
        try:
            moves = group.advance(lambda: self._scheduler.fork(root))
        except Exception as error:  # as of one who listens
            log.exception("a listener failed")
            self._end(root, GenerationFailed(f"what listened to the reply failed: {error!r}"))
            return
        for beam, ids in moves:
            assert beam.slot is not None
            self._runner.release(beam.slot, beam.ids[: beam.num_cached_tokens])
            beam.ids = ids
            beam.num_cached_tokens = self._runner.attach(beam.slot, ids)
        if group.search.is_over:
            self._end(root, group.completion(FinishReason.LENGTH))

    def _so_far(self, sequence: Sequence) -> Outcome:
        if sequence in self._searches:
            return self._searches[sequence].completion(FinishReason.TIME)
        return super()._so_far(sequence)

    def _free(self, sequence: Sequence) -> None:
        group = self._searches.pop(sequence, None)
        for member in group.members if group else [sequence]:
            with self._changed:
                slot = member.slot
                self._scheduler.finish(member)
            if slot is not None:
                self._runner.release(slot, member.ids[: member.num_cached_tokens])
