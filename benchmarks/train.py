"""Our trainer's step against the ancestors' way and against `transformers`' `Trainer`, in labelled tokens per second.

    python -m benchmarks.train                       three rounds; about three minutes on two cores
    python -m benchmarks.train --quick --json        one short round; one JSON object

The same dialogues, tokenizer, GPT-2 shape, number format and machine, round by round in one run; `benchmarks.trainers`
says what each contender does. A labelled token is one that the language-model loss is taken at. CPU seconds are those
of all threads: where others use the same cores, they are what compares. The share of peak arithmetic is what the
labels needed, whatever else a contender computes, over the rate of one large matrix product in the same number format.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config

from benchmarks.limits import median_s
from benchmarks.trainers import LEARNING_RATE, Bench, Round, ancestors, library, ours, ours_with_both_losses
from personas.logs import configure_logging
from personas.settings import load_settings
from trainer.config import ScratchModel, load_config
from trainer.formats import Dialogue, read_dialogues
from trainer.train import Run

# Of the square matrices whose product is the peak: large enough to keep a GPU busy, small enough for a CPU.
SIDES = {"cuda": 8192, "cpu": 2048}
DATA = Path("../shared/data/personachat/train.jsonl.gz")
OURS = "personabot"
CONTENDERS: dict[str, Callable[[Bench, int], Round]] = {
    OURS: ours,
    "personabot, both losses": ours_with_both_losses,
    "transformers Trainer": library,
    "the ancestors' way": ancestors,
}


def measure(
    data: Path,
    *,
    num_dialogues: int,
    num_rounds: int,
    train_tokens: int,
    seconds: float,
    shape: ScratchModel,
    dtype: str,
) -> dict[str, Any]:
    """Let every contender train in turn, round by round; return the medians."""
    dialogues = list(islice(read_dialogues(data), num_dialogues))
    with tempfile.TemporaryDirectory() as folder:
        same = Path(folder, "dialogues.jsonl")
        same.write_text("".join(json.dumps(_line(dialogue)) + "\n" for dialogue in dialogues), encoding="utf-8")
        settings = {
            "data": [{"path": same, "both_sides": False}],
            "train_tokens": train_tokens,
            "batch_tokens": 2048,
            "micro_tokens": 2048,
            "learning_rate": LEARNING_RATE,
            "scratch": shape.model_dump(),
            "dtype": dtype,
        }
        config = load_config(None, settings)
        run = Run.prepare(config, Path(folder, "run"))
        built = run.model.model.config
        assert isinstance(built, GPT2Config)
        bench = Bench(dialogues, config, run.layout, built, seconds, run.dtype, run.ranks.device)
        peak, num_seen = product_flops(bench.dtype, bench.device), mean_context(bench)
        rounds: dict[str, list[tuple[Round, float]]] = {name: [] for name in CONTENDERS}
        for number in range(num_rounds):
            for name, contender in CONTENDERS.items():
                wall, cpu = time.perf_counter(), time.process_time()
                done = contender(bench, number)
                rounds[name].append((done, (time.process_time() - cpu) / (time.perf_counter() - wall)))
    return {
        "shape": f"GPT-2 {built.n_layer} × {built.n_embd}, vocabulary {built.vocab_size}, {dtype}",
        "data": f"{data.name}, first {len(dialogues)} dialogues",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "num_rounds": num_rounds,
        "peak_flops": peak,
        "contenders": {
            name: figures(done) | {"of_peak": statistics.median(flops(one, built, num_seen) for one, _ in done) / peak}
            for name, done in rounds.items()
        },
    }


def figures(rounds: list[tuple[Round, float]]) -> dict[str, float]:
    """Return the medians over the rounds, each given with the share of a core that the contender had."""
    return {
        "labels_per_s": statistics.median(one.num_labels / one.seconds for one, _ in rounds),
        "labels_per_cpu_s": statistics.median(one.num_labels / one.seconds / share for one, share in rounds),
        "tokens_per_s": statistics.median(one.num_tokens / one.seconds for one, _ in rounds),
    }


def flops(one: Round, shape: GPT2Config, num_seen: float) -> float:
    """The operations a second that a round's tokens and labels need, each token seeing `num_seen` others on average.

    Two for each weight of a layer's products, of the head where there is a label, and of attention's two products;
    backwards twice as many again.
    """
    products = 12 * shape.n_layer * shape.n_embd**2
    attention = 2 * shape.n_layer * shape.n_embd * num_seen
    head = shape.vocab_size * shape.n_embd
    return 6 * (one.num_tokens * (products + attention) + one.num_labels * head) / one.seconds


def mean_context(bench: Bench) -> float:
    """How many positions a token attends to on average, in the sequences that the trainer makes of the dialogues."""
    lengths = [
        len(example.ids)
        for dialogue in bench.dialogues
        for example in bench.layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=bench.config.max_tokens)
    ]
    return sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """The operations a second of one large matrix product: the most that this hardware gives."""
    side = SIDES.get(device.type, SIDES["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median_s(lambda: left @ right, device)


def _line(dialogue: Dialogue) -> dict[str, Any]:
    return {"p1": dialogue.partner_facts, "p2": dialogue.facts, "turns": [turn.text for turn in dialogue.turns]}


def show(result: dict[str, Any]) -> None:
    """Print a table, and how many times faster we are."""
    peak = f"peak {result['peak_flops'] / 1e12:.3g} TFLOP/s"
    table = Table(caption=f"{result['shape']}; {result['data']}; {result['machine']}; {peak}", caption_justify="left")
    for column in ("trainer", "labels/s", "labels/CPU s", "tokens/s", "of peak", "ours: times", "by CPU s"):
        table.add_column(column, justify="left" if column == "trainer" else "right")
    own = result["contenders"][OURS]
    for name, each in result["contenders"].items():
        times = [f"{own[key] / each[key]:.1f}" for key in ("labels_per_s", "labels_per_cpu_s")]
        speeds = (f"{each[key]:,.0f}" for key in ("labels_per_s", "labels_per_cpu_s", "tokens_per_s"))
        table.add_row(name, *speeds, f"{each['of_peak']:.1%}", *times)
    Console().print(table)


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="dialogues that begin with the user, turn by turn")
    parser.add_argument("--dialogues", type=int, default=600, help="how many of them")
    parser.add_argument("--rounds", type=int, default=3, help="how often each trains (medians are shown)")
    parser.add_argument("--train-tokens", type=int, default=60_000, help="of our rounds, processed tokens")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the others' rounds")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384, help="of the hidden states; 64 to a head")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    if flags.quick:
        flags.rounds, flags.train_tokens, flags.seconds = 1, min(flags.train_tokens, 16_000), min(flags.seconds, 4.0)
    result = measure(
        flags.data,
        num_dialogues=flags.dialogues,
        num_rounds=flags.rounds,
        train_tokens=flags.train_tokens,
        seconds=flags.seconds,
        shape=ScratchModel(num_layers=flags.layers, hidden_size=flags.width, num_heads=max(flags.width // 64, 1)),
        dtype=flags.dtype,
    )
    if flags.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
