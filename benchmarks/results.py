"""Write docs/results.md: what the models are worth on ConvAI2 validation, beside what others have published.

    python -m benchmarks.results                       about six minutes on two quiet cores
    python -m benchmarks.results --dialogues 1000 --rank-dialogues 1000      in full; hours on a CPU

Every row is one `personabot evaluate`; the page says which. `runs/results.json` keeps the figures: what was measured of
the same checkpoint with the same command is not measured again, unless `--again` is given.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import Environment, StrictUndefined
from rich.console import Console

from personas.logs import configure_logging
from personas.settings import load_settings
from trainer.evaluate import without_persona
from trainer.formats import Dialogue, read_dialogues
from trainer.measure import Measurements
from worker.loading import load_model

DATA = Path("../shared/data/convai2")
PERSONAS = {"original": "valid_both_original_no_cands.txt", "revised": "valid_both_revised_no_cands.txt"}
PAGE = Path("docs/results.md")
FIGURES = Path("runs/results.json")
TEMPLATE = Path(__file__).with_name("results.md.jinja")


@dataclass(frozen=True, slots=True)
class Model:
    """A row group: what `personabot evaluate` takes, and what the page calls it."""

    path: str
    title: str
    is_also_without: bool = False  # also ranked and answered without any persona
    is_also_revised: bool = True
    made_by: str = ""  # the command, for a checkpoint that is not in the repository; without its folder it has no row


MODELS = (
    Model("models/starter", "(a) starter, from scratch"),
    Model("smollm2-135m-instruct", "(b) SmolLM2-135M-Instruct, zero-shot"),
    Model("models/smollm2-persona", "(c) the same, fine-tuned with LoRA", is_also_without=True),
    Model(
        "runs/first-loss/checkpoint",
        "(e) starter, 2 M tokens more, without the second loss",
        is_also_revised=False,
        made_by="personabot train --config trainer/recipes/second_loss.toml --num-candidates 1 --out runs/first-loss",
    ),
    Model(
        "runs/second-loss/checkpoint",
        "(e) the same with it",
        is_also_revised=False,
        made_by="personabot train --config trainer/recipes/second_loss.toml --out runs/second-loss",
    ),
)
# Reported by their authors or the competition; sources in the page.
PUBLISHED = (
    ("TransferTransfo (GPT-1)", "valid, leaderboard", "17.51", "82.1", "19.09"),
    ("its repository's recipe (GPT-1)", "valid", "20.5", ">79", "16.5"),
    ("a user's run of it, GPT-2 small", "valid", "–", "73.7", "16.4"),
    ("P² Bot (GPT-1)", "valid", "15.12", "81.9", "19.77"),
    ("Lost in Conversation", "hidden test", "–", "17.1", "17.77"),
)


class Kept:
    """Figures of earlier runs, by checkpoint and command, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, digest: str, command: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is known, else measure and keep it."""
        key = f"{digest} {command}"
        if key not in self._figures:
            self._figures[key] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._figures, indent=1), encoding="utf-8")
        known: dict[str, Any] = self._figures[key]
        return known


def measure(model: Model, number: int, num_ranked: int, kept: Kept) -> Iterator[Row]:
    """Yield a model's rows: under each version of the personas, and under none."""
    loaded = load_model(model.path)

    def row(name: str, file: str) -> Row:
        def figures() -> dict[str, Any]:
            dialogues = list(read_dialogues(DATA / file))
            given = without_persona(dialogues) if name == "none" else dialogues
            return measure_row(Measurements(loaded), given, number, num_ranked, is_swapped=name != "none")

        asked = command(model, name, number, num_ranked)
        key = f"{asked} --dialogues {number} --rank-dialogues {num_ranked}" if name == "none" else asked
        return Row(model, name, kept.get(loaded.digest, key, figures), asked)

    yield row("original", PERSONAS["original"])
    if model.is_also_without:
        yield row("none", PERSONAS["original"])
    if model.is_also_revised:
        yield row("revised", PERSONAS["revised"])


def measure_row(
    measurements: Measurements, dialogues: list[Dialogue], number: int, num_ranked: int, *, is_swapped: bool
) -> dict[str, Any]:
    """Return the figures of one model on one file, and how long they took."""
    started = time.monotonic()
    figures = measurements.identity() | measurements.score(dialogues[:number], is_swapped=is_swapped)
    figures["rank"] = measurements.rank(dialogues, limit=num_ranked)
    figures["replies"] = measurements.replies(dialogues[:num_ranked])
    return figures | {"seconds": time.monotonic() - started}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the page: a model under one version of the personas."""

    model: Model
    personas: str
    figures: dict[str, Any]
    command: str

    @property
    def cells(self) -> str:
        """The row's figures as they are written."""
        swap, replies, ranked = self.figures.get("swap"), self.figures["replies"], self.figures["rank"]
        ways = [way for way in ("", "pmi_", "head_") if f"{way}hits_at_1" in ranked]
        values = [
            f"{self.figures['ppl_word']:.2f}",
            f"{self.figures['bpb']:.3f}",
            " / ".join(f"{100 * ranked[f'{way}hits_at_1']:.1f}" for way in ways),
            " / ".join(f"{ranked[f'{way}mrr']:.3f}" for way in ways),
            f"{100 * replies['greedy']['f1']:.1f}",
            f"{100 * replies['sampled']['f1']:.1f}",
            f"{swap['swap_nll']:+.3f}" if swap else "–",
            f"{swap['persona_lowers_ppl']:.1%}" if swap else "–",
        ]
        return " | ".join(values)

    @property
    def replies(self) -> dict[str, str]:
        """How the replies look, by the way of sampling."""
        return {way: _reply_cells(figures) for way, figures in self.figures["replies"].items()}


def _reply_cells(figures: dict[str, Any]) -> str:
    plain = [f"{figures['mean_words']:.1f}", *(f"{figures[name]:.2f}" for name in ("distinct_1", "distinct_2"))]
    shares = ("repeated_4", "copied_4", "empty", "stopped")
    return " | ".join([*plain, *(f"{figures[name]:.1%}" for name in shares)])


def page(rows: list[Row], number: int, num_ranked: int) -> str:
    """Return docs/results.md."""
    num_turns = rows[0].figures["rank"]["num_ranked"]
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=rows,
        number=number,
        num_ranked=num_ranked,
        num_turns=num_turns,
        has_head=any("head_hits_at_1" in row.figures["rank"] for row in rows),
        digests=sorted({row.figures["rank"]["candidates_sha256"] for row in rows}),
        # One standard error: of a share near one half, in points; of F1, whose values scatter by about 20 points.
        error=50 / num_turns**0.5,
        f1_error=20 / num_turns**0.5,
        machine=machine(),
        published=PUBLISHED,
    )


def command(model: Model, name: str, number: int, num_ranked: int) -> str:
    """Return how to get one row; the row without personas is part of this script alone."""
    if name == "none":
        return "python -m benchmarks.results"
    return (
        f"personabot evaluate {model.path} {DATA / PERSONAS[name]} --rank --replies --swap "
        f"--limit {number} --rank-limit {num_ranked}"
    )


def machine() -> str:
    """Return what the figures were made on."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{(n := torch.get_num_threads())} CPU thread{'s' * (n > 1)}"
    )
    return f"{platform.machine()}, {device}, torch {torch.__version__}, transformers {transformers.__version__}"


def main() -> None:
    """Read the flags, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=40, help="how many are scored")
    parser.add_argument("--rank-dialogues", type=int, default=10, help="how many are ranked and answered")
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--again", action="store_true", help="measure everything, also what has not changed")
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    if flags.again:
        FIGURES.unlink(missing_ok=True)
    rows, kept = [], Kept(FIGURES)
    for model in MODELS:
        if model.made_by and not Path(model.path).is_dir():
            Console(stderr=True).print(f"left out, since {model.path} is not there: {model.title}. {model.made_by}")
            continue
        for row in measure(model, flags.dialogues, flags.rank_dialogues, kept):
            rows.append(row)
            # Written row by row, so that a run which is cut short leaves what it has.
            flags.out.write_text(page(rows, flags.dialogues, flags.rank_dialogues), encoding="utf-8")
            Console(stderr=True).print(f"{model.path}, {row.personas}: {row.cells} ({row.figures['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
