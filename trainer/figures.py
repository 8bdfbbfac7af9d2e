"""The pictures of a report: curves of training and validation, and speed. Draws what it is given; reads no files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.report import Subject

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw(subjects: Sequence[Subject], out: Path) -> list[tuple[str, Path]]:
    """Write a PNG for every picture that the subjects' logs have figures for; return (title, path) of each."""
    trained = [subject for subject in subjects if subject.steps]
    looked = [subject for subject in subjects if any(len(points) > 1 for points in subject.looks().values())]
    pictures = []
    if trained:
        pictures.append(_picture(out / "loss.png", "Training loss", "nats per labelled token", _losses(trained)))
    if looked:
        pictures.append(_picture(out / "validation.png", "Held-out data", "bits per byte", _looks(looked)))
    if trained:
        pictures.append(_picture(out / "speed.png", "Speed", "processed tokens per second", _speeds(trained)))
    return pictures


class Curve:
    """One line: `xs` in processed tokens; `raw` is drawn faintly behind it where the line itself is smoothed."""

    def __init__(self, label: str, xs: Sequence[float], ys: Sequence[float], raw: Sequence[float] = ()) -> None:
        self.label, self.xs, self.ys, self.raw = label, xs, ys, raw


def smoothed(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Return the mean of each value and its neighbours, together about `share` of all values."""
    half = round(len(values) * share / 2)
    parts = (values[max(0, place - half) : place + half + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _losses(subjects: Sequence[Subject]) -> list[Curve]:
    curves = []
    for subject in subjects:
        xs, ys = ([entry[name] for entry in subject.steps] for name in ("tokens", "loss"))
        curves.append(Curve(subject.name, xs, smoothed(ys), ys))
    return curves


def _looks(subjects: Sequence[Subject]) -> list[Curve]:
    return [
        Curve(f"{subject.name} · {data}", [x for x, _ in points], [y for _, y in points])
        for subject in subjects
        for data, points in subject.looks().items()
    ]


def _speeds(subjects: Sequence[Subject]) -> list[Curve]:
    curves = []
    for subject in subjects:
        xs, ys = ([entry[name] for entry in subject.steps] for name in ("tokens", "tokens_per_s"))
        curves.append(Curve(subject.name, xs, smoothed(ys), ys))
    return curves


def _picture(path: Path, title: str, unit: str, curves: Sequence[Curve]) -> tuple[str, Path]:
    from matplotlib.figure import Figure  # the object interface: no global state, no display
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes: Any = figure.subplots()
    for curve, colour in zip(curves, cycle(COLOURS), strict=False):
        if curve.raw:
            axes.plot(curve.xs, curve.raw, color=colour, alpha=0.18, linewidth=0.8)
        is_dotted = len(curve.xs) < 25
        axes.plot(curve.xs, curve.ys, color=colour, label=curve.label, marker="o" if is_dotted else "", markersize=4)
    axes.set(title=title, xlabel="processed tokens", ylabel=unit)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return title, path
