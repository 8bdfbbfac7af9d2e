"""From persona and turns to the text of a reply: the layout's prompt, the engine, and what to do when nothing comes.

Owns the order in which settings override each other. Knows no queue and no platform.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import structlog

from personas.conversation import Turn
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry
from personas.settings import Settings
from worker import metrics
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed, EngineError
from worker.engine.loop import EngineLoop
from worker.engine.request import Completion, FinishReason, Ids, SamplingParams
from worker.engine.vllm_engine import VllmEngine
from worker.generate import Task, generate
from worker.head import HeadRanker
from worker.loading import LoadedModel, load_model
from worker.ranking import Ranker

log = structlog.get_logger(__name__)

MAX_RETRIES = 2
# Said when the model keeps answering with nothing but white space.
FALLBACK_TEXT = "Hmm, I don't know what to say to that. Tell me more?"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the persona says. Asking with the same prompt, settings and `seed` gives the same text again."""

    text: str
    seed: int
    model: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int
    num_dropped_turns: int
    num_dropped_facts: int
    queue_s: float
    first_token_s: float
    total_s: float
    is_fallback: bool = False


class Responder:
    """Speaks as any persona with one loaded model. Many threads may ask at once.

    `ranker` takes part in choosing between candidates; without one the model's own next-utterance head, if it has one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        engine: EngineLoop,
        *,
        defaults: GenerationSettings | None = None,
        ranker: Ranker | None = None,
    ) -> None:
        self.loaded = loaded
        self.engine = engine
        self._ranker = ranker or (HeadRanker(engine) if engine.has_head else None)
        checkpoint = loaded.checkpoint.generation if loaded.checkpoint else GenerationSettings()
        self._defaults = (defaults or GenerationSettings()).over(checkpoint)

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings | None = None,
        deadline: float | None = None,
        *,
        group: tuple[str, str] = ("", ""),
        stream: Callable[[str], None] | None = None,
    ) -> Reply:
        """Return the next thing `persona` says, by `deadline` (Unix seconds) if that is given.

        A setting is taken from the first that has it: `settings`, the persona, the operator's, the checkpoint's, ours.
        `group` is (server, conversation), between which the engine takes turns. `stream` is called in this thread with
        each piece of the reply as it comes; put together they are the reply's text.
        """
        started = time.monotonic()
        ends = None if deadline is None else started + deadline - time.time()
        wanted = (settings or GenerationSettings()).over(persona.generation).over(self._defaults)
        task = Task.of(wanted, self.loaded.layout, ends=ends, group=group, stream=stream)
        params = task.params
        prompt = self.loaded.layout.prompt(
            persona.facts,
            turns,
            max_tokens=min(self.loaded.window, params.max_length or self.loaded.window),
            reserve=params.max_new_tokens,
            examples=persona.examples,
        )
        try:
            completion, text = self._first_with_text(tuple(prompt.ids), turns, task)
        except EngineError as error:
            metrics.count_failure(error)
            raise
        if stream and not text:
            stream(FALLBACK_TEXT)
        reply = Reply(
            text=text or FALLBACK_TEXT,
            seed=params.seed,
            model=f"{self.loaded.name}@{self.loaded.digest}",
            finish_reason=completion.finish_reason,
            num_prompt_tokens=completion.num_prompt_tokens,
            num_new_tokens=len(completion.ids),
            num_dropped_turns=prompt.num_dropped_turns,
            num_dropped_facts=prompt.num_dropped_facts,
            queue_s=completion.queue_s,
            first_token_s=completion.first_token_s,
            total_s=time.monotonic() - started,
            is_fallback=not text,
        )
        metrics.count_reply(reply)
        log.debug(
            "generated",
            persona=persona.name,
            finish_reason=str(reply.finish_reason),
            num_prompt_tokens=reply.num_prompt_tokens,
            num_new_tokens=reply.num_new_tokens,
            queue_s=round(reply.queue_s, 3),
            first_token_s=round(reply.first_token_s, 3),
            total_s=round(reply.total_s, 3),
        )
        return reply

    def stop(self) -> None:
        """Stop the engine; replies under way end with an error."""
        self.engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _first_with_text(self, ids: Ids, turns: Sequence[Turn], task: Task) -> tuple[Completion, str]:
        """Generate until there is text, at most `MAX_RETRIES` times more; the text is empty where none came."""
        for attempt in range(MAX_RETRIES + 1):
            params = _retried(task.params, attempt)
            try:
                completion, text = generate(
                    self.engine, self.loaded.layout, ids, turns, replace(task, params=params), self._ranker
                )
            except DeadlinePassed:
                if not attempt:
                    raise
                break
            if text:
                return completion, text
            log.warning("empty reply", attempt=attempt, seed=params.seed, num_new_tokens=len(completion.ids))
        return completion, ""


def _retried(params: SamplingParams, attempt: int) -> SamplingParams:
    """The parameters of the n-th attempt: after the first one another seed, sampled, and not ended at once."""
    if not attempt:
        return params
    seed = (params.seed + attempt * 0x9E3779B9) % 2**63
    min_new_tokens = max(params.min_new_tokens, attempt)
    return replace(params, seed=seed, do_sample=True, num_beams=1, min_new_tokens=min_new_tokens)


def make_engine(loaded: LoadedModel, settings: Settings) -> EngineLoop:
    """Return the engine that `settings` name, for a model whose own weights it may free."""
    if settings.engine == "vllm":
        return VllmEngine.for_model(loaded, max_num_seqs=settings.max_num_seqs)
    return Engine.for_model(
        loaded,
        max_num_seqs=settings.max_num_seqs,
        num_threads=settings.num_threads or None,
        frees_weights=True,
        cuda_graphs=settings.cuda_graphs,
    )


def start_responder(settings: Settings, *, model: str = "") -> Responder:
    """Load `model`, or the one that `settings` name, and start an engine for it."""
    registry = Registry.of(settings)
    loaded = load_model(model or settings.model, device=settings.device, dtype=settings.dtype, registry=registry)
    engine = make_engine(loaded, settings)
    metrics.ENGINES.watch(engine, loaded.name)
    engine.start()
    return Responder(loaded, engine, defaults=settings.generation)
