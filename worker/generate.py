"""One reply from a prompt in ids: as it comes, cut at a stop string, or the best of several candidates.

Knows the engine, text and turns; must not know personas, nor what is said where nothing comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

from personas.conversation import Turn
from personas.layout import Layout
from personas.persona import GenerationSettings
from worker import wording
from worker.engine.errors import EngineError
from worker.engine.loop import EngineLoop
from worker.engine.request import Completion, Ids, Request, SamplingParams
from worker.ranking import Candidate, Ranker, best
from worker.streaming import TextStream, final_text

Stream = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How a reply is wanted, in ids where the settings have words; `ends` is on the monotonic clock."""

    params: SamplingParams
    stop_strings: tuple[str, ...] = ()
    num_candidates: int = 1
    ends: float | None = None
    group: tuple[str, str] = ("", "")
    stream: Stream | None = None

    @classmethod
    def of(
        cls,
        settings: GenerationSettings,
        layout: Layout,
        *,
        ends: float | None,
        group: tuple[str, str],
        stream: Stream | None,
    ) -> Self:
        """Read the settings; replies that are not drawn would all be the same, so there is one of them."""
        params = SamplingParams.from_settings(
            settings,
            bad_words=wording.phrases(settings.bad_words or (), layout),
            biases=wording.biases(settings.logit_bias or {}, layout),
        )
        is_drawn = params.do_sample and params.num_beams == 1
        return cls(
            params=params,
            stop_strings=settings.stop_strings or (),
            num_candidates=(settings.candidates or 1) if is_drawn else 1,
            ends=ends,
            group=group,
            stream=stream,
        )

    @property
    def is_told_as_it_comes(self) -> bool:
        """Whether somebody listens, and what there is so far is the beginning of what will be said."""
        return self.stream is not None and self.num_candidates == 1 and self.params.num_beams == 1

    def request(self, ids: Ids, place: int, heard: TextStream) -> Request:
        """Return what the engine is asked for the candidate at `place`; the first one has the task's own seed."""
        seed = (self.params.seed + place * 0xD1B54A32D192ED03) % 2**63
        return Request(
            prompt_ids=ids,
            params=replace(self.params, seed=seed),
            timeout_s=None if self.ends is None else self.ends - time.monotonic(),
            group=self.group,
            on_token=heard.hear if self.stop_strings or self.is_told_as_it_comes else None,
            is_complete=heard.is_complete if self.stop_strings else None,
            wants_log_prob=self.num_candidates > 1,
        )


def generate(
    engine: EngineLoop, layout: Layout, ids: Ids, turns: Sequence[Turn], task: Task, ranker: Ranker | None = None
) -> tuple[Completion, str]:
    """Return the reply to say after `turns`, whose prompt is `ids`, and its text; raises the engine's errors.

    The task's `stream` is called in this thread, and has had the whole text on return.
    """
    heard = [TextStream(layout.decoded, task.stop_strings) for _ in range(task.num_candidates)]
    futures = engine.submit_together(task.request(ids, place, one) for place, one in enumerate(heard))
    try:
        if task.stream and task.is_told_as_it_comes:
            futures[0].add_done_callback(heard[0].end)
            for piece in heard[0].pieces():
                task.stream(piece)
        completions = completed(futures)
    except BaseException:  # such as Ctrl-C: nobody waits for this any more
        for future in futures:
            future.cancel()
        raise
    texts = [final_text(layout.decoded(completion.ids), task.stop_strings) for completion in completions]
    place = 0
    if len(texts) > 1:
        sequences = [(*ids, *layout.reply_ids(text)) for text in texts]
        fits = ranker.scores(sequences, ends=task.ends, group=task.group) if ranker else [0.0] * len(texts)
        place = _best(completions, texts, fits, turns)
    if task.stream and (rest := texts[place].removeprefix(heard[0].told)):
        task.stream(rest)
    return completions[place], texts[place]


def completed(futures: Sequence[Future[Completion]]) -> list[Completion]:
    """Wait for all of them; those that failed are left out unless all did."""
    completions, failures = [], []
    for future in futures:
        try:
            completions.append(future.result())
        except EngineError as error:
            failures.append(error)
    if not completions:
        raise failures[0]
    return completions


def _best(completions: Sequence[Completion], texts: Sequence[str], fits: Sequence[float], turns: Sequence[Turn]) -> int:
    candidates = [
        Candidate(text, completion.mean_log_prob or 0.0, fit)
        for text, completion, fit in zip(texts, completions, fits, strict=True)
    ]
    return best(candidates, turns)
