"""The steps of a job as commands, for the child processes of `trainer.retraining.jobs`: check, judge, compare.

Each reads `order.json` in the job's folder and leaves one JSON file there, whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from personas.errors import PersonabotError
from personas.settings import load_settings
from worker.queue.job import Order

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def limited() -> None:
    """Do one step of a retraining job, within its share of the GPU's memory."""
    from trainer.start import limit_memory
    from worker.device import choose_device

    settings = load_settings()
    limit_memory(choose_device(settings.device)[0], settings.training_gpu_share)


@app.command()
def check(folder: Path) -> None:
    """Do the dry run of the job in FOLDER; what speaks against it is part of the report."""
    from personas.voices import obstacle
    from trainer.retraining.dry_run import dry_run, refused

    order, settings = _order(folder), load_settings()
    try:
        why_not = obstacle(settings, order.name, order.persona)
        report = {"refusal": why_not, "kind": "name"} if why_not else dry_run(folder, order, settings)
    except PersonabotError as error:
        report = refused(error)
    _leave(folder / "report.json", report)


@app.command()
def judge(folder: Path) -> None:
    """Judge what was trained in FOLDER and promote it if it passes."""
    from trainer.retraining.judging import judge as judged

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    _leave(folder / "result.json", judged(folder, _order(folder), report, load_settings()))


@app.command()
def compare(folder: Path) -> None:
    """Let the two checkpoints of the order in FOLDER answer the same prompts."""
    from trainer.retraining.samples import compared

    _leave(folder / "result.json", compared(_order(folder), load_settings()))


def _order(folder: Path) -> Order:
    return Order(**json.loads((folder / "order.json").read_text(encoding="utf-8")))


def _leave(path: Path, data: dict[str, Any]) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(data), encoding="utf-8")
    scratch.replace(path)
