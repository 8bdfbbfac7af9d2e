"""The training loop: take batches, step, log, look at the validation data, save; and go on after an interruption."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from rich.progress import Progress

from personas.errors import PersonabotError
from personas.layout import Layout
from trainer.config import ConfigError, TrainConfig
from trainer.data import Batch, Corpus, Stream
from trainer.evaluate import score_dialogues
from trainer.interruption import Interruption
from trainer.layouts import build_layout
from trainer.model import DTYPES, TrainingModel
from trainer.optimizer import Optimizer, schedule
from trainer.ranks import Ranks
from trainer.run_figures import passes, progress_bar, run_figures, say, summary
from trainer.run_folder import RunFolder, claim, going_on, names
from trainer.start import build_model, build_stream, resolved
from trainer.step import Taken, take_gradient
from trainer.track import Tracking
from worker.device import choose_device

log = structlog.get_logger(__name__)

MAX_SAMPLED = 200  # dialogues whose lengths tell how long a pass is


class TrainingError(PersonabotError):
    """A run cannot go on: its numbers are no numbers any more."""


@dataclass(slots=True)
class Place:
    """How far a run has come; with the seed it determines every batch to follow."""

    step: int = 0
    num_tokens: int = 0
    num_labels: int = 0
    window: int = 0
    index: int = 0
    seconds: float = 0.0
    best_bpb: float = math.inf
    num_worse: int = 0


@dataclass(slots=True)
class Run:
    """One training run in its folder."""

    config: TrainConfig
    folder: RunFolder
    layout: Layout
    model: TrainingModel
    stream: Stream
    valid: list[Corpus]
    ranks: Ranks
    place: Place = field(default_factory=Place)
    interruption: Interruption = field(default_factory=Interruption)
    tracking: Tracking = field(default_factory=lambda: Tracking({}))
    before: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def prepare(cls, config: TrainConfig, path: Path) -> Run:
        """Read the data and build layout and model as the configuration says; then write the tokenizer, no more.

        Raises `ConfigError` where the configuration cannot be, or `path` holds another run.
        """
        if config.patience is not None and not config.valid:
            raise ConfigError("patience: needs held-out data to look at: name it with --valid, or in [[valid]]")
        torch.manual_seed(config.seed)
        ranks = Ranks.start(choose_device(config.device)[0])
        if ranks.is_first:
            claim(path, config)
        ranks.wait()  # what the first one mends, all read
        config = going_on(config, path)
        corpora = [Corpus.read(source) for source in config.data]
        valid = [Corpus.read(source, "valid") for source in config.valid]
        if not ranks.is_first:
            ranks.wait()
        layout = build_layout(config, corpora, path)
        if layout.name != "corpus":
            corpora, valid = ([corpus.in_passages() for corpus in some] for some in (corpora, valid))
        model = build_model(config, layout, ranks.device)
        stream = build_stream(config, corpora, layout)
        run = cls(resolved(config, stream, model), RunFolder(path), layout, model, stream, valid, ranks)
        if ranks.is_first:
            run.folder.keep_tokenizer(layout)
            ranks.wait()
        return run

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.config.dtype]

    def train(self) -> Path:
        """Run to the end, or to a signal; return the checkpoint folder. Resumes where `last/` left off."""
        optimizer = Optimizer(self.model.named_parameters().items(), self.config, self.ranks.device.type)
        self.model.train()
        self._resume(optimizer)
        if self.ranks.is_first:
            self.folder.record(self.config)
            say(passes(self.config.train_tokens, self.stream.num_pass_tokens(MAX_SAMPLED)))
            self._start_tracking()
        try:
            with self.interruption, progress_bar(is_shown=self.ranks.is_first) as progress:
                self._loop(optimizer, progress)
        finally:
            self.tracking.end()
        return self.finish()

    def _loop(self, optimizer: Optimizer, progress: Progress) -> None:
        task = progress.add_task("training", total=self.config.train_tokens, completed=self.place.num_tokens, note="")
        saved = looked = time.monotonic()
        if self.config.valid_first and not self.place.step:
            self._validate()
        for batches in self._steps():
            started = time.monotonic()
            taken = self._step(optimizer, batches)
            self.place.seconds += time.monotonic() - started
            note = self._log_step(batches, taken, time.monotonic() - started)
            progress.update(task, completed=self.place.num_tokens, note=note)
            if self._is_time_to_look(looked):
                self._validate()
                looked = time.monotonic()
            is_stopping = self.ranks.any(self.interruption.number > 0)
            is_over = self.ranks.any(self.place.num_tokens >= self.config.train_tokens or self._has_stalled())
            if is_stopping or is_over or time.monotonic() - saved > self.config.save_minutes * 60:
                self._save(optimizer)
                saved = time.monotonic()
            if is_stopping:
                log.info("stopped; the same command goes on", step=self.place.step)
                raise SystemExit(self.interruption.status)
            if is_over:
                return

    def _steps(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step, and move `place` behind them."""
        if self.place.num_tokens >= self.config.train_tokens or self._has_stalled():
            return
        batches: list[Batch] = []
        for window, index, batch in self.stream.batches(window=self.place.window, skip=self.place.index):
            batches.append(batch)
            if sum(b.num_tokens for b in batches) >= self.config.batch_tokens:
                self.place.window, self.place.index = window, index + 1
                self.place.step += 1
                self.place.num_tokens += sum(b.num_tokens for b in batches)
                yield batches
                batches = []

    def _step(self, optimizer: Optimizer, batches: list[Batch]) -> Taken:
        """Take one optimizer step; raise `TrainingError`, the weights as they were, where its loss is no number."""
        self.place.num_labels += sum(batch.num_labels for batch in batches)
        taken = take_gradient(self.model, optimizer, self.ranks, self.config, batches)
        if not math.isfinite(taken.loss) or not (math.isfinite(taken.norm) or optimizer.is_scaled):
            kept = "last/ holds the latest save" if self.folder.load() else "nothing was saved yet"
            raise TrainingError(
                f"{self.folder.path}: step {self.place.step}: loss {taken.loss:g}, gradient norm {taken.norm:g}; "
                f"{kept}. Lower the learning rate ({optimizer.rate:g}), or train in fp32, with another --out."
            )
        progress = self.place.num_tokens / self.config.train_tokens
        optimizer.step(schedule(progress, warmup=self.config.warmup, decay=self.config.decay))
        return taken

    def _log_step(self, batches: list[Batch], taken: Taken, seconds: float) -> str:
        num_tokens = sum(batch.num_tokens for batch in batches)
        both = {"lm_loss": round(taken.lm_loss, 4), "mc_loss": round(taken.mc_loss, 4)}
        self._write_log(
            {
                "step": self.place.step,
                "tokens": self.place.num_tokens,
                "loss": round(taken.loss, 4),
                **(both if self.config.num_candidates > 1 else {}),
                "grad_norm": round(taken.norm, 3),
                "tokens_per_s": round(num_tokens / seconds, 1),
                "labels_per_s": round(sum(batch.num_labels for batch in batches) / seconds, 1),
            }
        )
        return f"loss {taken.loss:.3f} · {num_tokens / seconds:,.0f} tok/s"

    def _is_time_to_look(self, looked: float) -> bool:
        if not self.valid:
            return False
        if self.place.num_tokens >= self.config.train_tokens:
            return True
        if self.config.valid_steps is not None:
            return self.place.step % self.config.valid_steps == 0
        return time.monotonic() - looked > self.config.valid_minutes * 60

    def _has_stalled(self) -> bool:
        return self.config.patience is not None and self.place.num_worse >= self.config.patience

    def _validate(self) -> None:
        """Look at the validation data; keep the weights as `best/` where bits per byte are the lowest so far."""
        if not self.ranks.is_first or not self.valid:
            return
        found = self.validation_figures()
        for name, figures in found.items():
            self._write_log({"step": self.place.step, "valid": name, **figures})
            log.info("validated", step=self.place.step, data=name, **figures)
        self.before = self.before or (found if not self.place.step else {})
        bpb = sum(figures["bpb"] for figures in found.values()) / len(found)
        if not self.place.step:
            return
        if bpb < self.place.best_bpb:
            self.place.best_bpb, self.place.num_worse = bpb, 0
            self.folder.write_checkpoint("best", self.model.save, self._figures())
        else:
            self.place.num_worse += 1

    def validation_figures(self) -> dict[str, dict[str, float]]:
        """Return perplexities and bits per byte by file, of the first dialogues of each."""
        self.model.train(False)
        found, called = {}, names(corpus.source.path for corpus in self.valid)
        for corpus in self.valid:
            metrics = score_dialogues(
                corpus.dialogues[: self.config.valid_dialogues],
                self.layout,
                lambda ids: self.model.hidden(ids, dtype=self.dtype),
                self.model.head,
                max_tokens=self.config.max_tokens,
                micro_tokens=self.config.valid_micro_tokens,
                device=self.ranks.device,
            ).metrics()
            found[called[corpus.source.path]] = {
                name: round(metrics[name], 4) for name in ("ppl_token", "ppl_word", "bpb")
            }
        self.model.train()
        return found

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self.ranks.is_first:
            self.folder.log(entry)
            self.tracking.log(entry)

    def _start_tracking(self) -> None:
        config = self.config.model_dump(mode="json", exclude_none=True)
        self.tracking = Tracking.start(
            self.config.track, self.folder.path, name=self.config.name, config=config, step=self.place.step
        )

    def _save(self, optimizer: Optimizer) -> None:
        """Write `last/`."""
        if self.ranks.is_first:
            state = {
                "place": {name: getattr(self.place, name) for name in Place.__slots__},
                "before": self.before,
                "weights": self.model.trainable_state(),
                "optimizer": optimizer.state(),
                "random": torch.get_rng_state(),
            }
            self.folder.save(state)

    def _resume(self, optimizer: Optimizer) -> None:
        state = self.folder.load()
        if self.ranks.is_first:
            self.folder.cut_log(state["place"]["step"] if state else -1)
        if state is None:
            return
        self.place = Place(**state["place"])
        self.before = state["before"]
        self.model.load_trainable_state(state["weights"])
        optimizer.load(state["optimizer"])
        torch.set_rng_state(state["random"])
        log.info("resumed", step=self.place.step, tokens=self.place.num_tokens)

    def finish(self) -> Path:
        """Write the checkpoint folder and say how it went; with `patience` it is the best one, else the last."""
        final = self.folder.path / "checkpoint"
        if self.ranks.is_first:
            figures = self._figures()
            if self.before:
                figures["held_out"] = {"before": self.before, "after": self.validation_figures()}
            if self.config.patience is not None and (self.folder.path / "best").is_dir():
                final = self.folder.copy_checkpoint("best", "checkpoint", figures)
            else:
                final = self.folder.write_checkpoint("checkpoint", self.model.save, figures)
            say(summary(figures))
            log.info("checkpoint written", folder=str(final), step=self.place.step)
        self.ranks.wait()
        return final

    def _figures(self) -> dict[str, Any]:
        place = self.place
        return run_figures(
            steps=place.step,
            num_tokens=place.num_tokens,
            num_labels=place.num_labels,
            seconds=place.seconds,
            device=self.ranks.device,
        )
