"""`personabot inspect`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from personas.layout import LAYOUTS, Layout
from trainer.formats import PROSE
from trainer.inspection import Counts, Lengths, as_json, count, measure, read, samples


def inspect(
    file: Annotated[Path, typer.Argument(help="A data file, or a persona folder.")],
    format: Annotated[str | None, typer.Option(help="Its format, where it is not recognised.")] = None,
    speaker: Annotated[
        str, typer.Option("--speaker", "--me", help="Whose lines the bot learns, where people have names.")
    ] = "",
    model_path: Annotated[str, typer.Option(help="The model whose layout and tokenizer count; else the default.")] = "",
    layout: Annotated[str | None, typer.Option(help=f"Another layout: {', '.join(LAYOUTS)}.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The window; else the layout's own.", min=32)] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, without samples.")] = False,
) -> None:
    """Say what a data file holds, how long its dialogues are in tokens, and show what would be trained."""
    dialogues = read(file, format, speaker)
    counts = count(file, format, dialogues)
    chosen = _layout(model_path, layout or ("corpus" if counts.format in PROSE else None))
    window = max_tokens or chosen.max_tokens
    lengths = measure(dialogues, chosen, window)
    if is_json:
        typer.echo(json.dumps(as_json(replace(counts, file=str(file)), lengths), ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_summary(counts, lengths))
    for number, sample in enumerate(samples(dialogues, chosen, window), 1):
        console.print(Text(f"\nSample {number} (what is trained is green):", style="bold"))
        console.print(Text.assemble(*((text, "green" if is_trained else "dim") for is_trained, text in sample)))


def _layout(model: str, name: str | None) -> Layout:
    from trainer.layouts import layout_of

    own = layout_of(model)
    if name is None or name == own.name:
        return own
    if name not in LAYOUTS:
        raise typer.BadParameter(f"{name!r}: expected one of {', '.join(LAYOUTS)}", param_hint="--layout")
    return LAYOUTS[name](own.tokenizer_json(), max_tokens=own.max_tokens)


def _summary(counts: Counts, lengths: Lengths) -> Text:
    rows = {
        "format": counts.format,
        "dialogues": f"{counts.num_dialogues:,} ({counts.num_duplicates:,} of them duplicates)",
        "turns": f"{counts.num_turns:,}",
        "words": f"{counts.num_words:,}",
        "personas": f"{counts.num_personas:,}",
        "told from both sides": f"{counts.num_two_sided:,} of {counts.num_dialogues:,}",
        "with candidates": f"{counts.num_with_candidates:,}",
        "licence": counts.licence or "not named in the file",
        f"tokens ({lengths.layout})": " · ".join(f"p{p} {n:,}" for p, n in lengths.percentiles.items()),
        f"longer than {lengths.max_tokens:,}": f"{lengths.share_truncated:.1%} of {lengths.num_encoded:,} dialogues",
        "trained tokens": f"{lengths.share_trained:.1%}",
    }
    width = max(map(len, rows))
    return Text("\n").join(Text.assemble((name.ljust(width + 2), "bold"), value) for name, value in rows.items())
