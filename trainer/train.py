"""The training loop: take batches, step, log, look at the validation data, save; and go on after an interruption."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import tomli_w
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from personas.layout import Layout, Part
from trainer.card import record
from trainer.config import TrainConfig
from trainer.data import Batch, Corpus, Stream
from trainer.evaluate import padded, score_dialogues
from trainer.formats import data_files
from trainer.layouts import build_layout
from trainer.loss import sparse_head_loss
from trainer.model import TrainingModel
from trainer.optimizer import Optimizer, clip, schedule
from trainer.track import Tracking

log = structlog.get_logger(__name__)

STATE_FILE = "state.pt"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(slots=True)
class Place:
    """How far a run has come; with the seed it determines every batch to follow."""

    step: int = 0
    num_tokens: int = 0
    num_labels: int = 0
    window: int = 0
    index: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Run:
    """One training run in its folder: `train.toml`, `env.json`, `log.jsonl`, `last/`, and in the end `checkpoint/`."""

    config: TrainConfig
    folder: Path
    layout: Layout
    model: TrainingModel
    stream: Stream
    valid: list[Corpus]
    device: torch.device
    place: Place = field(default_factory=Place)
    is_stopping: bool = False
    tracking: Tracking = field(default_factory=lambda: Tracking({}))

    @classmethod
    def prepare(cls, config: TrainConfig, folder: Path) -> Run:
        """Read the data and build layout and model as the configuration says; nothing is written but the folder."""
        torch.manual_seed(config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        corpora = [Corpus.read(source) for source in config.data]
        layout = build_layout(config, corpora, folder)
        device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
        )
        model = (
            TrainingModel.from_base(
                config.base, lora=config.lora, layout=layout, generation=config.generation, dtype=DTYPES[config.dtype]
            )
            if config.base
            else TrainingModel.from_scratch(config.scratch, layout, config.generation)
        )
        model.model.to(device)  # type: ignore[arg-type]
        stream = Stream(
            corpora,
            layout,
            seed=config.seed,
            micro_tokens=config.micro_tokens,
            max_tokens=config.max_tokens,
            loss_on=config.loss_on,
        )
        valid = [Corpus.read(source) for source in config.valid]
        return cls(config, folder, layout, model, stream, valid, device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.config.dtype]

    def train(self) -> Path:
        """Run to the end, or to a signal; return the checkpoint folder. Resumes where `last/` left off."""
        optimizer = Optimizer(self.model.named_parameters().items(), self.config)
        self._resume(optimizer)
        self._record_environment()
        self._start_tracking()
        previous = signal.signal(signal.SIGTERM, self._stop)
        try:
            with self._progress() as progress:
                self._loop(optimizer, progress)
        except KeyboardInterrupt:
            self._save(optimizer)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.tracking.end()
        return self.export()

    def _loop(self, optimizer: Optimizer, progress: Progress) -> None:
        task = progress.add_task("training", total=self.config.train_tokens, completed=self.place.num_tokens, note="")
        saved = looked = time.monotonic()
        for batches in self._steps():
            started = time.monotonic()
            loss, norm = self._step(optimizer, batches)
            self.place.seconds += time.monotonic() - started
            note = self._log_step(batches, loss, norm, time.monotonic() - started)
            progress.update(task, completed=self.place.num_tokens, note=note)
            if self.valid and time.monotonic() - looked > self.config.valid_minutes * 60:
                self._validate()
                looked = time.monotonic()
            is_over = self.place.num_tokens >= self.config.train_tokens
            if self.is_stopping or is_over or time.monotonic() - saved > self.config.save_minutes * 60:
                self._save(optimizer)
                saved = time.monotonic()
            if self.is_stopping:
                raise SystemExit(143)
            if is_over:
                return

    def _steps(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step, and move `place` behind them."""
        if self.place.num_tokens >= self.config.train_tokens:
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

    def _step(self, optimizer: Optimizer, batches: list[Batch]) -> tuple[float, float]:
        """One optimizer step; the loss is a mean over the labelled tokens of all its micro-batches together."""
        num_labels = sum(batch.num_labels for batch in batches)
        self.place.num_labels += num_labels
        total = 0.0
        for batch in batches:
            ids, parts = padded(batch, self.device)
            rows, columns = (parts[:, 1:] != Part.CONTEXT).nonzero(as_tuple=True)
            states = self.model.hidden(ids, dtype=self.dtype)[rows, columns]
            loss = sparse_head_loss(states, self.model.head, ids[rows, columns + 1]) / max(num_labels, 1)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = clip(self.model.parameters(), self.config.max_norm)
        progress = self.place.num_tokens / self.config.train_tokens
        optimizer.step(schedule(progress, warmup=self.config.warmup, decay=self.config.decay))
        return total, norm

    def _log_step(self, batches: list[Batch], loss: float, norm: float, seconds: float) -> str:
        num_tokens = sum(batch.num_tokens for batch in batches)
        self._write_log(
            {
                "step": self.place.step,
                "tokens": self.place.num_tokens,
                "loss": round(loss, 4),
                "grad_norm": round(norm, 3),
                "tokens_per_s": round(num_tokens / seconds, 1),
                "labels_per_s": round(sum(batch.num_labels for batch in batches) / seconds, 1),
            }
        )
        return f"loss {loss:.3f} · {num_tokens / seconds:,.0f} tok/s"

    def _validate(self) -> None:
        for corpus in self.valid:
            self.model.model.train(False)
            score = score_dialogues(
                corpus.dialogues[: self.config.valid_dialogues],
                self.layout,
                lambda ids: self.model.hidden(ids, dtype=self.dtype),
                self.model.head,
                max_tokens=self.config.max_tokens,
                device=self.device,
            )
            self.model.model.train()
            figures = {k: round(v, 4) for k, v in score.metrics().items() if k in ("ppl_token", "ppl_word", "bpb")}
            self._write_log({"step": self.place.step, "valid": corpus.source.path.name, **figures})
            log.info("validated", step=self.place.step, data=corpus.source.path.name, **figures)

    def _write_log(self, entry: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.tracking.log(entry)

    def _start_tracking(self) -> None:
        config = self.config.model_dump(mode="json", exclude_none=True)
        self.tracking = Tracking.start(
            self.config.track, self.folder, name=self.config.name, config=config, step=self.place.step
        )

    def _save(self, optimizer: Optimizer) -> None:
        """Write `last/` whole or not at all."""
        scratch, last = self.folder / ".last", self.folder / "last"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        place = {name: getattr(self.place, name) for name in Place.__slots__}
        state = {
            "place": place,
            "weights": self.model.trainable_state(),
            "optimizer": optimizer.state(),
            "random": torch.get_rng_state(),
        }
        with (scratch / STATE_FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        old = self.folder / ".old"
        shutil.rmtree(old, ignore_errors=True)
        if last.exists():
            last.rename(old)
        scratch.rename(last)
        shutil.rmtree(old, ignore_errors=True)

    def _resume(self, optimizer: Optimizer) -> None:
        path = next(
            (p for p in (self.folder / "last" / STATE_FILE, self.folder / ".old" / STATE_FILE) if p.exists()), None
        )
        if path is None:
            return
        state = torch.load(path, weights_only=True)
        self.place = Place(**state["place"])
        self.model.load_trainable_state(state["weights"])
        optimizer.load(state["optimizer"])
        torch.set_rng_state(state["random"])
        log.info("resumed", step=self.place.step, tokens=self.place.num_tokens)

    def _stop(self, *_: object) -> None:
        self.is_stopping = True

    def _record_environment(self) -> None:
        config = self.config.model_dump(mode="json", exclude_none=True)
        (self.folder / "train.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
        (self.folder / "env.json").write_text(json.dumps(environment(self.config), indent=2) + "\n", encoding="utf-8")

    def export(self) -> Path:
        """Write the checkpoint folder, whole or not at all."""
        scratch, final = self.folder / ".checkpoint", self.folder / "checkpoint"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        self.model.save(scratch)
        shutil.copy(self.folder / "train.toml", scratch / "train.toml")
        figures = {
            "steps": self.place.step,
            "tokens": self.place.num_tokens,
            "labels": self.place.num_labels,
            "seconds": round(self.place.seconds),
            "environment": json.loads((self.folder / "env.json").read_text(encoding="utf-8")),
        }
        record(scratch, "training", figures)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        log.info("checkpoint written", folder=str(final), step=self.place.step)
        return final

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens · {task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return Progress(*columns, refresh_per_second=2)


def environment(config: TrainConfig) -> dict[str, Any]:
    """What a figure depends on besides the configuration: versions, hardware, the data's hashes."""
    import hashlib

    import transformers

    data = {}
    for path in (source.path for source in (*config.data, *config.valid)):
        for part in data_files(path) if path.is_dir() else [path]:
            with part.open("rb") as file:
                data[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "git": git.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "data_sha256": data,
    }
