"""What a run's `log.jsonl` says: how far it is, how fast, and the loss as a curve. Trains nothing itself."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trainer.track import read_addresses
from worker.queue.job import Progress

NUM_RECENT: Final = 20  # steps whose mean is shown as the speed


@dataclass(slots=True)
class RunLog:
    """Reads `log.jsonl` as it grows. A resumed run replaces it by what it goes on from: then all is read again."""

    path: Path
    total_tokens: int = 0
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    experiments: dict[str, str] = field(default_factory=dict)
    _offset: int = 0
    _file: int = 0

    def read(self) -> None:
        """Read the complete lines that were added."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._offset:
                self.steps, self.checks, self._offset, self._file = {}, [], 0, status.st_ino
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        for line in data[:end].splitlines():
            self._add(json.loads(line))
        self.experiments = self.experiments or read_addresses(self.path.parent)

    def progress(self) -> Progress:
        """Return how far the run is."""
        if not self.steps:
            return Progress(total_tokens=self.total_tokens)
        newest = self.steps[max(self.steps)]
        speed = self.speed()
        left = max(self.total_tokens - newest["tokens"], 0)
        return Progress(
            step=newest["step"],
            tokens=newest["tokens"],
            total_tokens=self.total_tokens,
            loss=newest["loss"],
            tokens_per_s=round(speed, 1),
            seconds_left=left / speed if speed else None,
            experiments=self.experiments,
        )

    def speed(self) -> float:
        """Return processed tokens per second, the mean of the newest steps."""
        newest = [self.steps[step]["tokens_per_s"] for step in sorted(self.steps)[-NUM_RECENT:]]
        return sum(newest) / len(newest) if newest else 0.0

    def seconds(self) -> float:
        """Return the computing time of the steps that count."""
        before, total = 0, 0.0
        for step in sorted(self.steps):
            tokens, speed = self.steps[step]["tokens"], self.steps[step]["tokens_per_s"]
            total += (tokens - before) / speed if speed else 0.0
            before = tokens
        return total

    def _add(self, entry: dict[str, Any]) -> None:
        if "loss" in entry:
            # What follows a step that is written again belongs to the interrupted attempt.
            self.steps = {step: old for step, old in self.steps.items() if step < entry["step"]}
            self.steps[entry["step"]] = entry
        elif "bpb" in entry:
            self.checks.append(entry)


def draw_curve(log: RunLog, title: str) -> bytes:
    """Return the loss over processed tokens as a PNG: every step faint, a running mean strong."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [log.steps[step] for step in sorted(log.steps)]
    tokens, losses = [entry["tokens"] for entry in steps], [entry["loss"] for entry in steps]
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(tokens, losses, color="tab:blue", alpha=0.3, linewidth=1)
    axes.plot(tokens, running_mean(losses, max(len(losses) // 20, 1)), color="tab:blue")
    axes.set(title=title, xlabel="processed tokens", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
    return picture.getvalue()


def running_mean(values: list[float], width: int) -> list[float]:
    """Return the mean of each value and up to `width - 1` before it.

    >>> running_mean([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    means = []
    for index in range(len(values)):
        window = values[max(index - width + 1, 0) : index + 1]
        means.append(sum(window) / len(window))
    return means
