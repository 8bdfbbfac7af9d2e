"""Draws what the engine benchmark measured: throughput and latency over the number of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, latency) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, by_concurrency in result["engines"].items():
        numbers = [int(number) for number in by_concurrency]
        own = list(by_concurrency.values())
        [line] = speed.plot(numbers, [f["tokens_per_s"] for f in own], marker="o", label=name)
        latency.plot(numbers, [f["p50_s"] for f in own], marker="o", color=line.get_color(), label=f"{name}, p50")
        latency.plot(numbers, [f["p95_s"] for f in own], marker="^", color=line.get_color(), linestyle="--")
    for axes, label in ((speed, "new tokens per second"), (latency, "seconds per reply: p50 —, p95 - -")):
        axes.set(xlabel="conversations at once", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.grid(alpha=0.3)
    speed.legend(fontsize="small")
    figure.suptitle(f"{result['model']}; {result['machine']}", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
