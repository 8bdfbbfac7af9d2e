"""What a checkpoint says of itself to people: `metrics.json` and the model card. Owns files, not measuring."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from personas.checkpoint import DESCRIPTION_FILE, Description
from trainer.config import Source

METRICS_FILE = "metrics.json"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what is known of a checkpoint; empty where nothing was measured yet."""
    path = folder / METRICS_FILE
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def record(folder: Path, section: str, figures: dict[str, Any]) -> None:
    """Put `figures` under `section` of `metrics.json`, and write the card anew."""
    metrics = read_metrics(folder)
    metrics[section] = {**metrics.get(section, {}), **figures}
    write_metrics(folder, metrics)
    (folder / "README.md").write_text(card(folder, metrics), encoding="utf-8")


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def card(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the model card in Markdown."""
    config = tomllib.loads((folder / "train.toml").read_text(encoding="utf-8"))
    given = [Source.model_validate(source) for source in config["data"]]
    total = sum(source.share for source in given)
    sources = [
        {
            "file": "/".join(source.path.parts[-2:]),
            "licence": source.licence,
            "share": source.share / total,
        }
        for source in given
    ]
    environment = Environment(trim_blocks=True, undefined=StrictUndefined, autoescape=False)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        config={"notes": "", **config, "base": _base(folder, config)},
        lora=config.get("lora"),
        sources=sources,
        training=metrics.get("training"),
        evaluation=metrics.get("evaluation"),
        probe=metrics.get("probe"),
    )


def _base(folder: Path, config: dict[str, Any]) -> str | None:
    """What was trained on; of an adapter that goes on from another one, what that one stands on."""
    path = folder / DESCRIPTION_FILE
    described = Description.model_validate_json(path.read_bytes()).base if path.is_file() else None
    return described or config.get("base")
