"""`personabot evaluate`, `report` and `publish`: what a person asks for, and where it goes. Measures nothing itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from personas.errors import PersonabotError

if TYPE_CHECKING:
    from trainer.formats import Dialogue
    from trainer.measure import Measurements


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, Hugging Face folder or hub id.")],
    data: Annotated[Path | None, typer.Argument(help="Held-out dialogue.")] = None,
    format: Annotated[str | None, typer.Option(help="The file's format, where it is not recognised.")] = None,
    speaker: Annotated[
        str, typer.Option("--speaker", "--me", help="Who is the bot, where people have names.", show_default=False)
    ] = "",
    both_sides: Annotated[bool, typer.Option("--both-sides", help="Also score the first speaker's turns.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first so many dialogues.", min=1)] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All of --rank, --replies, --swap and --probe.")] = False,
    is_ranked: Annotated[
        bool, typer.Option("--rank", help="hits@1 of 20 candidates and mean reciprocal rank.")
    ] = False,
    is_replied: Annotated[
        bool, typer.Option("--replies", help="Generate every bot turn, greedily and sampled: F1, repetition, lengths.")
    ] = False,
    is_swapped: Annotated[
        bool, typer.Option("--swap", help="Score again under another's persona, and under none.")
    ] = False,
    is_probe: Annotated[
        bool, typer.Option("--probe", help="Ask every catalogue persona for its name and facts.")
    ] = False,
    rank_limit: Annotated[
        int | None, typer.Option(help="Rank and generate in the first so many dialogues only.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of candidates, swapped personas and sampled replies.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    is_saved: Annotated[bool, typer.Option("--save", help="Keep the figures in the checkpoint and its card.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write metrics.json and samples.md (20 fixed prompts) into this folder.")
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Write the probe's questions and replies here (JSONL).")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a checkpoint on DATA: perplexities and bits per byte; by flags ranking, replies, and its persona."""
    needs_data = is_ranked or is_replied or is_swapped
    if data is None and (needs_data or not (is_probe or is_all or out)):
        raise PersonabotError("nothing to evaluate: name a data file, or ask for --probe")
    from trainer.card import record, write_metrics
    from trainer.formats import read_dialogues
    from trainer.measure import Measurements
    from worker.loading import load_model

    loaded = load_model(checkpoint, device=device, dtype=dtype)
    with _progress() as progress:
        measure = Measurements(loaded, seed=seed, progress=progress)
        figures = measure.identity()
        if data is not None:
            scored = _on_data(
                measure, read_dialogues(data, format, speaker=speaker, split="valid"), both_sides, limit, rank_limit,
                is_ranked=is_ranked or is_all, is_replied=is_replied or is_all, is_swapped=is_swapped or is_all,
            )  # fmt: skip
            figures |= {"data": data.name, **scored}
            if is_saved:
                record(Path(checkpoint), "evaluation", {data.name: {**scored, "dtype": figures["dtype"]}})
        if is_probe or is_all:
            probed = measure.probe(samples)
            figures |= {"probe": probed}
            if is_saved:
                record(Path(checkpoint), "probe", probed)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "samples.md").write_text(measure.samples(), encoding="utf-8")
            write_metrics(out, figures)
    if is_json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        _show(figures)


def _on_data(
    measure: Measurements,
    read: Iterable[Dialogue],
    both_sides: bool,
    limit: int | None,
    rank_limit: int | None,
    *,
    is_ranked: bool,
    is_replied: bool,
    is_swapped: bool,
) -> dict[str, Any]:
    """Measure on what was read; both limits count dialogues, whichever sides of them are told."""
    from trainer.data import spoken

    dialogues = list(read)
    if measure.loaded.layout.name != "corpus":
        dialogues = [part for dialogue in dialogues for part in spoken(dialogue)]
    rank_limit = rank_limit or limit
    if both_sides:
        sides = [(dialogue, dialogue.flipped()) for dialogue in dialogues[:limit]]
        dialogues = [side for pair in sides for side in pair]
        limit, rank_limit = None, rank_limit and 2 * rank_limit
    figures = measure.score(dialogues[:limit], is_swapped=is_swapped)
    if is_ranked:
        figures |= {"rank": measure.rank(dialogues, limit=rank_limit)}
    if is_replied:
        figures |= {"replies": measure.replies(dialogues[:rank_limit])}
    return figures


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows how far a measurement is: called with its name, what is done, and of how much."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield show


def _show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['model']} ({figures['digest']}, {figures['dtype']})", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in _flat(figures):
        if isinstance(value, int | float):
            table.add_row(key, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}", value


def report(
    folders: Annotated[list[Path], typer.Argument(help="Runs, checkpoints, or folders of `evaluate --out`.")],
    out: Annotated[Path, typer.Option(help="Write report.html, report.md and the curves here.")] = Path("report"),
) -> None:
    """Show runs and checkpoints side by side: one HTML page, curves as PNG, and a table for a README."""
    from trainer.report import PAGE, write_report

    sys.stdout.write(write_report(folders, out))
    Console(stderr=True).print(f"Written: {out / PAGE}")


def publish(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    repository: Annotated[str, typer.Argument(help="NAME, or OWNER/NAME; made where it is missing.")],
    is_private: Annotated[bool, typer.Option("--private/--public", help="Of a new repository.")] = True,
    licence: Annotated[str, typer.Option(help="Such as apache-2.0 or cc-by-4.0, for the card.")] = "",
) -> None:
    """Put a checkpoint with its model card on the Hugging Face hub."""
    from trainer.hub import push

    typer.echo(push(checkpoint, repository, is_private=is_private, licence=licence))
