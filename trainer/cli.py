"""The trainer's commands: `personabot train` and `personabot evaluate`."""

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


def train(
    data: Annotated[list[Path] | None, typer.Argument(help="Dialogue files; or name them in --config.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; flags win over it.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder; an interrupted run in it goes on.")] = Path("runs/model"),
    name: Annotated[str | None, typer.Option(help="The model's name, for its card.", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="Base model: name, folder or hub id; none: from scratch.")] = None,
    layout: Annotated[str | None, typer.Option(help="persona (GPT-2 family) or chat (instruct bases).")] = None,
    lora: Annotated[int | None, typer.Option(help="Train a LoRA adapter of this rank instead of all weights.")] = None,
    valid: Annotated[list[Path] | None, typer.Option(help="Held-out dialogue to look at on the way.")] = None,
    train_tokens: Annotated[int | None, typer.Option(help="Length of the run, in processed tokens.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Processed tokens of an optimizer step.")] = None,
    micro_tokens: Annotated[
        int | None, typer.Option(help="Padded tokens of a forward pass; less needs less memory.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest sequence, in tokens.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    loss_on: Annotated[str | None, typer.Option(help="bot, or both speakers' turns.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 (autocast) or fp32.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the data, initial weights, dropout.")] = None,
) -> None:
    """Train a model from scratch, fine-tune a base in full, or train a LoRA adapter on it.

    Every option of the configuration file is described in docs/training.md. Ctrl-C saves; the same command goes on.
    """
    from trainer.config import load_config
    from trainer.train import Run

    flags: dict[str, Any] = {
        "name": name or (out.name if config is None else None),
        "base": base,
        "layout": layout,
        "lora": {"rank": lora, "alpha": lora} if lora else None,
        "data": [{"path": path} for path in data] if data else None,
        "valid": [{"path": path, "both_sides": False} for path in valid] if valid else None,
        "train_tokens": train_tokens,
        "batch_tokens": batch_tokens,
        "micro_tokens": micro_tokens,
        "max_tokens": max_tokens,
        "learning_rate": learning_rate,
        "loss_on": loss_on,
        "dtype": dtype,
        "device": device,
        "seed": seed,
    }
    settings = load_config(config, {key: value for key, value in flags.items() if value is not None})
    folder = Run.prepare(settings, out).train()
    Console(stderr=True).print(f"Checkpoint: {folder}\nTry it: personabot chat --model-path {folder}")


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
