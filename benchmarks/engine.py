"""Our engine against others: same weights, same requests, interleaved in one run; medians and spread.

    python -m benchmarks.engine                          the shipped default model against `generate` one at a time
    python -m benchmarks.engine --quick --json           under a minute; one JSON object
    python -m benchmarks.engine --shape gpt2 --peers     GPT-2 124M with random weights; batches, too
    python -m benchmarks.engine --shape gpt2-medium --concurrency 1 16 64 256 --peers     on a GPU
    python -m benchmarks.engine --shape gpt2 --vllm-python /path/to/python    and vLLM from an environment of its own

Conversations send their next message when they have read the reply. A conversation's prompts grow from turn to turn;
every engine generates the same number of tokens for a request, at temperature 0.7, top_p 0.9, repetition penalty 1.1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it can be started as a file, too

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.limits import products_tokens_per_s, read_bytes_per_s, weight_bytes
from benchmarks.llama_cpp import FORMATS, llama_cpp_player
from benchmarks.peers import (
    Subject,
    play_continuous_batches,
    play_ctranslate2,
    play_one_at_a_time,
    play_ours,
    play_static_batches,
    vllm_peer,
)
from benchmarks.workload import Conversations, Play, Run, conversations, figures
from personas.errors import SettingsError
from personas.logs import configure_logging
from personas.settings import load_settings
from worker.device import DTYPES, choose_device, choose_dtype
from worker.engine.engine import Engine
from worker.engine.threads import release_team
from worker.loading import load_model

OURS, BASELINE = "personabot", "transformers one at a time"
QUICK_CONCURRENCIES = (1, 16)
CTRANSLATE2_DTYPES = ("float32", "int8")
# True shapes with random weights: speed does not depend on what a model says.
SHAPES = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
}


def subject_for(model: str, shape: str | None) -> Subject:
    """Load `model`, or make one of `shape`: in float32 on a CPU, else in the format that the device computes with."""
    device, _ = choose_device()
    dtype = "float32" if device.type == "cpu" else "auto"
    if shape is None:
        loaded = load_model(model, dtype=dtype)
        stop_ids, banned_ids = loaded.layout.stop_ids, loaded.banned_ids
        allowed = [i for i in range(loaded.layout.vocabulary_size) if i not in banned_ids | stop_ids]
        return Subject(loaded.model, f"{loaded.name}@{loaded.digest}", loaded.window, allowed, stop_ids, banned_ids)
    torch.manual_seed(0)
    random = GPT2LMHeadModel(GPT2Config(**SHAPES[shape])).eval().requires_grad_(False)
    random.to(device, choose_dtype(device, dtype)[0])  # type: ignore[arg-type]
    return Subject(random, f"{shape} shape, random weights", 1024, range(50256), frozenset({50256}), frozenset())


def dtypes_here(asked: str) -> list[str]:
    """The number formats in which ours is measured: the one asked for, or all that the device computes with."""
    if asked != "all":
        return [asked]
    device, _ = choose_device()
    if device.type != "cpu":
        return [name for name, dtype in DTYPES.items() if dtype is choose_dtype(device)[0]]
    names = ["float32"]
    if choose_dtype(device)[0] is torch.bfloat16:
        names.append("bfloat16")
    try:
        choose_dtype(device, "int8")
    except SettingsError:
        return names
    return [*names, "int8"]


def our_name(dtype: str, *, cuda_graphs: bool) -> str:
    """What our engine is called in the table."""
    return f"{OURS} {dtype}, graphs" if cuda_graphs else f"{OURS} {dtype}"


class Bench:
    """The engines that are compared, and what each did."""

    def __init__(self, subject: Subject, *, max_num_seqs: int) -> None:
        self.subject = subject
        self.players: dict[str, Play] = {}
        self.memory_bytes: dict[str, int] = {}
        self.runs: dict[str, dict[int, list[Run]]] = {}
        self._max_num_seqs = max_num_seqs

    def talks(self, number: int, num_turns: int) -> Conversations:
        """Return the workload for this model."""
        own = self.subject
        return conversations(own.allowed, window=own.window, number=number, num_turns=num_turns)

    @contextmanager
    def ours(self, dtype: str, *, cuda_graphs: bool = False) -> Iterator[None]:
        """Start our engine with weights in `dtype`."""
        name = our_name(dtype, cuda_graphs=cuda_graphs)
        before = memory_bytes(self.subject.model.device)
        engine = Engine(
            self.subject.model,
            stop_ids=self.subject.stop_ids,
            banned_ids=self.subject.banned_ids,
            window=self.subject.window,
            max_num_seqs=self._max_num_seqs,
            num_threads=torch.get_num_threads(),  # the same for all, whatever else runs here
            dtype=DTYPES[dtype],
            cuda_graphs=cuda_graphs,
        )
        with engine:
            self.add(name, play_ours(engine))
            self.memory_bytes[name] = memory_bytes(self.subject.model.device) - before
            yield

    @contextmanager
    def vllm(self, python: str, dtype: str) -> Iterator[None]:
        """Start vLLM with weights in `dtype`."""
        with tempfile.TemporaryDirectory() as scratch:
            self.subject.model.save_pretrained(scratch)
            with vllm_peer(python, Path(scratch), dtype=dtype, max_num_seqs=self._max_num_seqs) as peer:
                self.add(f"vLLM {dtype}", peer.play)
                self.memory_bytes[f"vLLM {dtype}"] = peer.rss_bytes
                yield

    def add(self, name: str, play: Play) -> None:
        """Let an engine take part, and warm it up."""
        self.players[name] = alone(play)
        self.players[name](self.talks(2, 1))

    def round(self, concurrency: int, num_turns: int, num_baseline_turns: int | None) -> None:
        """Let each engine play the same conversations once, the baseline perhaps only their beginnings."""
        # One conversation takes long enough to measure with a few times the turns.
        talks = self.talks(concurrency, num_turns if concurrency > 1 else 3 * num_turns)
        for name, play in self.players.items():
            given = [turns[:num_baseline_turns] for turns in talks] if name == BASELINE else talks
            self.runs.setdefault(name, {}).setdefault(concurrency, []).append(play(given))


def alone(play: Play) -> Play:
    """Let no threads of this one, which loads and plays `transformers`, be in the way of the engine that plays next."""

    def played(talks: Conversations) -> Run:
        release_team()
        try:
            return play(talks)
        finally:
            release_team()

    return played


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Run the engines round by round, at each concurrency."""
    subject = subject_for(flags.model, flags.shape)
    bench = Bench(subject, max_num_seqs=max(flags.concurrency))
    with ExitStack() as stack:
        bench.add(BASELINE, play_one_at_a_time(subject))
        if flags.peers:
            bench.add("transformers static batches", play_static_batches(subject, max(flags.concurrency)))
            bench.add("transformers continuous batches", play_continuous_batches(subject, max(flags.concurrency)))
            for dtype in CTRANSLATE2_DTYPES if find_spec("ctranslate2") else []:
                bench.add(f"CTranslate2 {dtype}", play_ctranslate2(subject, max(flags.concurrency), dtype=dtype))
            for kind in FORMATS if find_spec("xllamacpp") else []:
                play = stack.enter_context(llama_cpp_player(subject, max(flags.concurrency), kind=kind))
                bench.add(f"llama.cpp {kind}", play)
        names = dtypes_here(flags.dtype)[: 2 if flags.quick else None]  # a third format would take too long for that
        has_graphs = (False, True) if subject.model.device.type == "cuda" else (False,)
        own = list(itertools.product(names, has_graphs))
        for dtype, cuda_graphs in own:
            stack.enter_context(bench.ours(dtype, cuda_graphs=cuda_graphs))
        for dtype in flags.vllm_dtype if flags.vllm_python else []:
            stack.enter_context(bench.vllm(flags.vllm_python, dtype))
        print(f"measuring {', '.join(bench.players)}", file=sys.stderr, flush=True)
        for concurrency in flags.concurrency:
            for _ in range(flags.rounds):
                bench.round(concurrency, flags.turns, flags.baseline_turns)
        limits = (
            {}
            if flags.quick
            else {
                our_name(dtype, cuda_graphs=cuda_graphs): limits_of(subject, dtype, flags.concurrency)
                for dtype, cuda_graphs in own
            }
        )
    return {
        "model": subject.name,
        "num_parameters": sum(p.numel() for p in subject.model.parameters()),
        "machine": machine(subject.model.device),
        "num_rounds": flags.rounds,
        "num_turns": flags.turns,
        "engines": {
            name: {str(concurrency): asdict(figures(done)) for concurrency, done in by_concurrency.items()}
            for name, by_concurrency in bench.runs.items()
        },
        "spread": {
            name: {
                str(concurrency): [round(run.tokens_per_s, 1) for run in done]
                for concurrency, done in by_concurrency.items()
            }
            for name, by_concurrency in bench.runs.items()
        },
        "memory_bytes": bench.memory_bytes,
        "limits": limits,
    }


def limits_of(subject: Subject, dtype: str, concurrencies: list[int]) -> dict[str, float]:
    """The tokens per second of the products alone at each concurrency, and of reading the weights once per token."""
    own = DTYPES[dtype]
    limits = {str(n): products_tokens_per_s(subject.model, own, n) for n in concurrencies}
    return limits | {"bandwidth": read_bytes_per_s(subject.model.device) / weight_bytes(subject.model, own)}


def memory_bytes(device: torch.device) -> int:
    """What this process holds where the model is."""
    return psutil.Process().memory_info().rss if device.type == "cpu" else torch.accelerator.memory_reserved(device)


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    name = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {name}, torch {torch.__version__}"


def show(result: dict[str, Any]) -> None:
    """Print a table, how many times faster than the baseline each is, and the share of the products' speed."""
    engines = result["engines"]
    table = Table(caption=f"{result['model']}; {result['machine']}", caption_justify="left")
    for column in ("engine", "conversations", "tokens/s", "spread", "replies/s", "p50 s", "p95 s", "times", "of limit"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for concurrency in engines[BASELINE]:
        for name in engines:
            own = engines[name][concurrency]
            rounds = result["spread"][name][concurrency]
            spread = f"{min(rounds):.0f}–{max(rounds):.0f}"
            limit = result["limits"].get(name, {}).get(concurrency)
            numbers = [f"{own[key]:.2f}" for key in ("replies_per_s", "p50_s", "p95_s")]
            times = f"{paired_ratio(result, name, concurrency):.1f}"
            share = f"{own['tokens_per_s'] / limit:.0%}" if limit else ""
            table.add_row(name, concurrency, f"{own['tokens_per_s']:.1f}", spread, *numbers, times, share)
        table.add_section()
    console = Console()
    console = Console(width=max(console.width, 120))
    console.print(table)
    for name, limits in result["limits"].items():
        if "1" in engines[name]:
            share = engines[name]["1"]["tokens_per_s"] / limits["bandwidth"]
            console.print(f"{name}: at one conversation {share:.0%} of what reading the weights once a token allows")
    for name, size in result["memory_bytes"].items():
        console.print(f"memory of {name}: {size / 2**20:,.0f} MiB")


def paired_ratio(result: dict[str, Any], name: str, concurrency: str) -> float:
    """The median over the rounds of how many times faster than the baseline an engine was in the same round."""
    own, slow = (result["spread"][engine][concurrency] for engine in (name, BASELINE))
    return statistics.median(a / b for a, b in zip(own, slow, strict=True))


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder, name or hub id; empty: the shipped default")
    parser.add_argument("--shape", choices=SHAPES, help="a GPT-2 of this shape with random weights instead")
    parser.add_argument("--dtype", default="all", choices=["all", *DTYPES], help="of our engine (default: all)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(QUICK_CONCURRENCIES), metavar="N")
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine runs (medians are shown)")
    parser.add_argument("--turns", type=int, default=4, help="turns of each conversation")
    parser.add_argument("--baseline-turns", type=int, help="let the baseline play only so many turns of each")
    parser.add_argument(
        "--peers", action="store_true", help="also batches of transformers, and CTranslate2 and llama.cpp if installed"
    )
    parser.add_argument("--vllm-python", help="the Python of an environment with vLLM; it takes part")
    parser.add_argument("--vllm-dtype", nargs="+", default=["bfloat16"], help="float32, bfloat16 (default)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of one turn, ours in float32 and bfloat16, against one at a time only",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw throughput and latency (needs matplotlib)")
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    if flags.quick:
        flags.rounds = flags.turns = 1
        flags.peers, flags.vllm_python = False, None
    result = measure(flags)
    if flags.plot:
        from benchmarks.plot import draw

        draw(result, flags.plot)
    if flags.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
