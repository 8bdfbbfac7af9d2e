"""`personabot sweep`: which models, settings and prompts. Generates nothing itself."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from personas.persona import GenerationSettings
from personas.presets import PRESETS, preset


def sweep(
    models: Annotated[list[str] | None, typer.Argument(help="Models; none for the shipped default.")] = None,
    axes: Annotated[
        list[str] | None, typer.Option("--grid", help="Such as temperature=0.5,0.8; several make a grid.")
    ] = None,
    presets: Annotated[
        list[str] | None, typer.Option("--preset", help=f"{', '.join(PRESETS)}, or all; beside the grid.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="One message a line; without it 20 fixed prompts.")
    ] = None,
    persona: Annotated[str, typer.Option(help="Who is asked the prompts of --prompt-file.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies.")] = 1,
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("sweep.html"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Answer prompts under a grid of sampling settings; write the replies side by side, print the figures."""
    from ruamel.yaml import YAML

    from personas.catalogue import load_catalogue
    from trainer.decode import SAMPLES
    from trainer.report import markdown
    from trainer.sweep import fixed_prompts, grid, page, read_prompts, table
    from trainer.sweep import sweep as run
    from worker.loading import load_model

    points = grid(axes or [])
    names = list(PRESETS) if presets == ["all"] else presets or []
    points |= {name: preset(name) for name in names}
    points = points or {"the checkpoint's own": GenerationSettings()}
    catalogue = load_catalogue(None)
    prompts = (
        read_prompts(prompts_file, catalogue.get(persona or catalogue.names()[0]))
        if prompts_file
        else fixed_prompts(catalogue, YAML(typ="safe").load(SAMPLES))
    )
    columns = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for model in models or [""]:
            task = bar.add_task(model or "default model", total=len(points))
            show = partial(_show, bar, task)
            columns += run(load_model(model, device=device, dtype=dtype), prompts, points, seed=seed, progress=show)
    out.write_text(page(prompts, columns, seed=seed), encoding="utf-8")
    sys.stdout.write(markdown(table(columns)))
    Console(stderr=True).print(f"Written: {out}")


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)
