"""What a run says of itself: how far it is, and at its end how much, how fast, in how much memory, and how good."""

from __future__ import annotations

import resource
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(*, is_shown: bool) -> Progress:
    """Return the bar of a run; its tasks have a field `note`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens · {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, refresh_per_second=2, disable=not is_shown)


def say(text: str) -> None:
    """Print it on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


def passes(num_tokens: int, per_pass: float) -> str:
    """Say how long a run is.

    >>> passes(1_000_000, 10_300), passes(2_000, 10_000)
    ('1,000,000 tokens: 97 passes over the data', '2,000 tokens: 0.2 passes over the data')
    """
    number = num_tokens / max(per_pass, 1)
    return f"{num_tokens:,} tokens: {f'{number:,.0f}' if number >= 10 else f'{number:.2g}'} passes over the data"


def peak_memory_mib(device: torch.device) -> int:
    """Return the most memory the run has held: of the GPU where it runs on one, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def run_figures(
    *, steps: int, num_tokens: int, num_labels: int, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Return the figures of a run by their fixed names."""
    return {
        "steps": steps,
        "tokens": num_tokens,
        "labels": num_labels,
        "seconds": round(seconds),
        "tokens_per_s": round(num_tokens / max(seconds, 1e-9), 1),
        "labels_per_s": round(num_labels / max(seconds, 1e-9), 1),
        "peak_memory_mib": peak_memory_mib(device),
    }


def summary(figures: dict[str, Any]) -> str:
    """Return the figures as a run's last lines on the screen."""
    lines = [
        f"{figures['steps']:,} steps, {figures['tokens']:,} tokens in {figures['seconds']:,} s: "
        f"{figures['labels_per_s']:,.0f} labelled and {figures['tokens_per_s']:,.0f} processed tokens/s, "
        f"peak memory {figures['peak_memory_mib']:,} MiB"
    ]
    held_out = figures.get("held_out", {"before": {}, "after": {}})
    for name, before in held_out["before"].items():
        after = held_out["after"][name]
        lines.append(
            f"{name}: bits per byte {before['bpb']:.4f} before, {after['bpb']:.4f} after; "
            f"word perplexity {before['ppl_word']:.2f} before, {after['ppl_word']:.2f} after"
        )
    return "\n".join(lines)
