"""What a checkpoint says of itself to people: `metrics.json` and the model card. Owns wording, not measuring."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.json"
LIMITS = (
    "A small model: it forgets, contradicts itself, and states things that are not so. It knows its persona's facts from the prompt "
    "alone. English only. It was trained on dialogue of paid volunteers and on model-written dialogue, and repeats what "
    "prejudices they hold. Do not let it give advice that matters."
)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what is known of a checkpoint; empty where nothing was measured yet."""
    path = folder / METRICS_FILE
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return data


def record(folder: Path, section: str, figures: dict[str, Any]) -> None:
    """Put `figures` under `section` of `metrics.json`, and write the card anew."""
    metrics = read_metrics(folder)
    metrics[section] = {**metrics.get(section, {}), **figures}
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(folder, metrics), encoding="utf-8")


def card(folder: Path, metrics: dict[str, Any]) -> str:
    """Return the model card in Markdown."""
    config = tomllib.loads((folder / "train.toml").read_text(encoding="utf-8"))
    parts = [
        f"# {config['name']}",
        _what(config),
        "## Data",
        _data(config),
        "## Training",
        _training(config, metrics.get("training", {})),
        "## Figures",
        _figures(metrics),
        "## Limits",
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _what(config: dict[str, Any]) -> str:
    if "base" not in config:
        shape = config["scratch"]
        kind = (
            f"A GPT-2 of {shape['num_layers']} layers of width {shape['hidden_size']} with a byte-level BPE of {shape['vocabulary']} "
            "entries, trained from scratch"
        )
    elif "lora" in config:
        kind = f"A LoRA adapter of rank {config['lora']['rank']} on {config['base']}"
    else:
        kind = f"{config['base']}, fine-tuned in full"
    return (
        f"{kind}, on persona dialogue. Layout `{config['layout']}`, window {config['max_tokens']} tokens. "
        f"Talk to it with `personabot chat --model-path models/{config['name']}`."
    )


def _data(config: dict[str, Any]) -> str:
    total = sum(source["share"] for source in config["data"])
    rows = ["| file | licence | share of dialogues |", "|---|---|---:|"]
    rows += [
        f"| `{Path(s['path']).parent.name}/{Path(s['path']).name}` | {s['licence'] or 'not stated'} | {s['share'] / total:.0%} |"
        for s in config["data"]
    ]
    return "\n".join(rows)


def _training(config: dict[str, Any], training: dict[str, Any]) -> str:
    lines = ["```", f"personabot train --config models/{config['name']}/train.toml --out runs/{config['name']}", "```"]
    if training:
        environment = training["environment"]
        lines += [
            "",
            f"{training['tokens']:,} processed tokens ({training['labels']:,} of them targets) in {training['steps']:,} steps, "
            f"{training['seconds'] / 60:.0f} minutes on {environment['device']}; torch {environment['torch']}, "
            f"transformers {environment['transformers']}. `train.toml` beside this file holds every setting.",
        ]
    return "\n".join(lines)


def _figures(metrics: dict[str, Any]) -> str:
    rows = ["| data | word perplexity | bits per byte | token perplexity | words |", "|---|---:|---:|---:|---:|"]
    for name, entry in metrics.get("evaluation", {}).items():
        rows.append(
            f"| `{name}` | {entry['ppl_word']:.2f} | {entry['bpb']:.3f} | {entry['ppl_token']:.2f} | {entry['num_words']:,} |"
        )
    text = "\n".join(rows)
    if probe := metrics.get("probe"):
        text += (
            f"\n\nPersona probe (every catalogue persona, name and facts asked three ways each, default sampling, seed {probe['seed']}): "
            f"**{probe['names']:.1%}** of {probe['num_names']} questions for the name and **{probe['facts']:.1%}** of "
            f"{probe['num_facts']} questions for a fact were answered with it."
        )
    return text + "\n\nThe perplexities and bits per byte count the bot's turns as the file writes them; word perplexity and bits per byte leave out the stop token."
