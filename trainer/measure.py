"""The measurements of one loaded model, each by its name: score, rank, replies, probe, samples.

Owns what a measurement is made with (which attention, which engine), not how its figures are computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from personas.catalogue import load_catalogue
from personas.persona import GenerationSettings
from trainer.decode import GREEDY, asked_in, decode, fixed_samples, samples_page
from trainer.evaluate import Score, score_dialogues, swap_figures, swapped, without_persona
from trainer.formats import Dialogue
from trainer.metrics import reply_figures
from trainer.model import hidden_states
from trainer.probe import probe
from trainer.probes import load_probes
from trainer.ranking import Ranker, questions, rank
from worker.engine.engine import Engine
from worker.loading import LoadedModel
from worker.respond import Responder

# By name, told to `Measurements.progress` with what is done and of how much.
Progress = Callable[[str, int, int], None]
WAYS = {"greedy": GREEDY, "sampled": GenerationSettings()}


class Measurements:
    """Measures one model. Every measurement sets the attention it needs, so that any order gives the same figures."""

    def __init__(self, loaded: LoadedModel, *, seed: int = 1, progress: Progress = lambda *_: None) -> None:
        self.loaded, self.seed, self.progress = loaded, seed, progress

    def identity(self) -> dict[str, Any]:
        """Return which weights are measured, in which number format."""
        return {
            "model": self.loaded.name,
            "digest": self.loaded.digest,
            "dtype": str(self.loaded.dtype).removeprefix("torch."),
        }

    def score(self, dialogues: Sequence[Dialogue], *, is_swapped: bool = False) -> dict[str, Any]:
        """Return perplexities and bits per byte; with `is_swapped` also what the persona is worth, under "swap"."""
        right = self._score("scoring", dialogues)
        figures: dict[str, Any] = dict(right.metrics())
        if is_swapped:
            other = self._score("scoring as another", swapped(dialogues, seed=self.seed))
            figures["swap"] = swap_figures(right, other, self._score("scoring as nobody", without_persona(dialogues)))
        return figures

    def _score(self, name: str, dialogues: Sequence[Dialogue]) -> Score:
        loaded = self.loaded
        loaded.model.set_attn_implementation("sdpa")  # an engine may have had the model before
        return score_dialogues(
            dialogues,
            loaded.layout,
            hidden_states(loaded.model, loaded.layout),
            loaded.model.get_output_embeddings().weight,  # type: ignore[no-untyped-call]
            max_tokens=loaded.window,
            device=loaded.device,
            progress=partial(self._show, name, len(dialogues)),
        )

    def _show(self, name: str, total: int, done: int) -> None:
        self.progress(name, done, total)

    def rank(self, dialogues: Sequence[Dialogue], *, limit: int | None = None) -> dict[str, Any]:
        """Return hits@1 of 20 and mean reciprocal rank on the first `limit` dialogues; distractors come from all."""
        self.loaded.model.set_attn_implementation("sdpa")
        asked = questions(dialogues, limit=limit, seed=self.seed)
        loaded = self.loaded
        ranker = Ranker(loaded.model, loaded.layout, window=loaded.window, head=loaded.head)
        return rank(ranker, asked, partial(self._show, "ranking", len(asked)))

    def replies(self, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
        """Return the figures of a reply to every bot turn's context, greedy and under the default sampling."""
        asked = asked_in(dialogues)
        figures = {}
        with Engine.for_model(self.loaded) as engine:
            for name, settings in WAYS.items():
                show = partial(self._show, f"replying, {name}", len(asked))
                figures[name] = reply_figures(
                    decode(self.loaded, engine, asked, settings, seed=self.seed, progress=show)
                )
        return figures

    def samples(self) -> str:
        """Return the page of replies to the fixed prompts."""
        contexts = fixed_samples(load_catalogue(None))
        with Engine.for_model(self.loaded) as engine:
            columns = {
                name: decode(self.loaded, engine, [one for _, one in contexts], settings, seed=self.seed)
                for name, settings in WAYS.items()
            }
        return samples_page(f"{self.loaded.name} ({self.loaded.digest}), seed {self.seed}", contexts, columns)

    def probe(self, answers: Path | None = None) -> dict[str, Any]:
        """Return the persona probe's shares; writes every question and reply to `answers` (JSON Lines)."""
        with Engine.for_model(self.loaded) as engine:
            result = probe(Responder(self.loaded, engine), load_catalogue(None), load_probes(), seed=self.seed)
        if answers is not None:
            answers.write_text("".join(json.dumps(answer) + "\n" for answer in result.answers), encoding="utf-8")
        return result.metrics()
