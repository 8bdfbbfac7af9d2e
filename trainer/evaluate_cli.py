"""`personabot evaluate`: which measurements a person asks for, and how they are shown. Measures nothing itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from personas.errors import PersonabotError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, Hugging Face folder or hub id.")],
    data: Annotated[Path | None, typer.Argument(help="Held-out dialogue.")] = None,
    format: Annotated[str | None, typer.Option(help="The file's format, where it is not recognised.")] = None,
    both_sides: Annotated[bool, typer.Option("--both-sides", help="Also score the first speaker's turns.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first so many dialogues.")] = None,
    is_probe: Annotated[
        bool, typer.Option("--probe", help="Ask every catalogue persona for its name and facts.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the probe's replies.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    is_saved: Annotated[bool, typer.Option("--save", help="Keep the figures in the checkpoint and its card.")] = False,
    samples: Annotated[Path | None, typer.Option(help="Write the probe's questions and replies here (JSONL).")] = None,
    is_json: Json = False,
) -> None:
    """Measure a checkpoint: perplexities and bits per byte on DATA, and with --probe how it keeps to its persona."""
    if data is None and not is_probe:
        raise PersonabotError("nothing to evaluate: name a data file, or ask for --probe")
    from trainer.card import record
    from worker.loading import load_model

    loaded = load_model(checkpoint, device=device, dtype=dtype)
    figures: dict[str, Any] = {
        "model": loaded.name,
        "digest": loaded.digest,
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }
    if data is not None:
        scored = _score(loaded, data, format, both_sides, limit)
        figures |= {"data": data.name, **scored}
        if is_saved:
            record(Path(checkpoint), "evaluation", {data.name: {**scored, "dtype": figures["dtype"]}})
    if is_probe:
        probed = _probe(loaded, seed, samples)
        figures |= {"probe": probed}
        if is_saved:
            record(Path(checkpoint), "probe", probed)
    if is_json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        _show(figures)


def _score(loaded: Any, data: Path, format: str | None, both_sides: bool, limit: int | None) -> dict[str, Any]:
    import itertools

    from rich.progress import Progress

    from trainer.evaluate import score_dialogues
    from trainer.formats import read_dialogues
    from trainer.model import hidden_states

    dialogues = list(itertools.islice(read_dialogues(data, format), limit))
    if both_sides:
        dialogues += [dialogue.flipped() for dialogue in dialogues]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"scoring {data.name}", total=len(dialogues))
        score = score_dialogues(
            dialogues,
            loaded.layout,
            hidden_states(loaded.model),
            loaded.model.get_output_embeddings().weight,
            max_tokens=min(loaded.window, loaded.layout.max_tokens),
            device=loaded.device,
            progress=lambda done: bar.update(task, completed=done),
        )
    return score.metrics()


def _probe(loaded: Any, seed: int, samples: Path | None) -> dict[str, Any]:
    from personas.catalogue import load_catalogue
    from trainer.probe import probe
    from trainer.probes import load_probes
    from worker.engine.engine import Engine
    from worker.respond import Responder

    engine = Engine.for_model(loaded)
    engine.start()
    try:
        result = probe(Responder(loaded, engine), load_catalogue(None), load_probes(), seed=seed)
    finally:
        engine.stop()
    if samples is not None:
        samples.write_text("".join(json.dumps(answer) + "\n" for answer in result.answers), encoding="utf-8")
    return result.metrics()


def _show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['model']} ({figures['digest']}, {figures['dtype']})", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in {**figures, **figures.get("probe", {})}.items():
        if isinstance(value, int | float):
            table.add_row(key, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)
