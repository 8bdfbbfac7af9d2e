"""Our engine against `transformers` `generate` one at a time: same weights, same requests, interleaved in one run.

    python benchmarks/engine.py                        the shipped default model, float32, 16 conversations of 4 turns
    python benchmarks/engine.py --quick --json         under a minute; one JSON object
    python benchmarks/engine.py --model models/starter --dtype auto

Conversations send their next message when they have read the reply. A conversation's prompts grow from turn to turn;
both engines generate the same number of tokens for a request, at temperature 0.7, top_p 0.9, repetition penalty 1.1.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig

from personas.logs import configure_logging
from personas.settings import load_settings
from worker.engine.engine import Engine
from worker.engine.request import Completion, Request, SamplingParams
from worker.loading import LoadedModel, load_model

OURS, BASELINE = "personabot", "transformers one at a time"
CONCURRENCIES = (1, 16)
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}
MAX_PROMPT_TOKENS = 250


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: the whole prompt, and how many tokens are to be generated."""

    prompt_ids: tuple[int, ...]
    num_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine did with one list of conversations."""

    total_s: float
    latencies_s: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The medians over the rounds."""

    tokens_per_s: float
    replies_per_s: float
    p50_s: float
    p95_s: float


Conversations = Sequence[Sequence[Turn]]
Play = Callable[[Conversations], Run]


def conversations(loaded: LoadedModel, *, number: int, num_turns: int, seed: int = 7) -> list[list[Turn]]:
    """Make up conversations: a persona of 55–65 tokens, messages of 5–60, replies of 10–40."""
    draw = random.Random(seed)
    allowed = [i for i in range(loaded.layout.vocabulary_size) if i not in loaded.banned_ids | loaded.layout.stop_ids]
    window = min(MAX_PROMPT_TOKENS, loaded.window - 40)
    made = []
    for _ in range(number):
        ids = draw.choices(allowed, k=draw.randint(55, 65) + draw.randint(5, 40))
        turns = []
        for _ in range(num_turns):
            turns.append(Turn(tuple(ids[:window]), draw.randint(10, 40), draw.getrandbits(32)))
            ids = ids + draw.choices(allowed, k=draw.randint(12, 60))
        made.append(turns)
    return made


def play_ours(engine: Engine) -> Play:
    """Return a player that keeps every conversation's current message in the engine."""

    def play(talks: Conversations) -> Run:
        queues = [deque(turns) for turns in talks]
        open_: dict[Future[Completion], tuple[int, float]] = {}
        latencies, num_tokens, started = [], 0, time.perf_counter()

        def send(talk: int) -> None:
            if queues[talk]:
                turn = queues[talk].popleft()
                n = turn.num_new_tokens
                params = SamplingParams(**SAMPLING, max_new_tokens=n, min_new_tokens=n, seed=turn.seed)
                open_[engine.submit(Request(prompt_ids=turn.prompt_ids, params=params))] = talk, time.perf_counter()

        for talk in range(len(talks)):
            send(talk)
        while open_:
            for future in wait(open_, return_when=FIRST_COMPLETED).done:
                talk, sent = open_.pop(future)
                num_tokens += len(future.result().ids)
                latencies.append(time.perf_counter() - sent)
                send(talk)
        return Run(time.perf_counter() - started, tuple(latencies), num_tokens)

    return play


def play_baseline(loaded: LoadedModel) -> Play:
    """Return a player that answers message after message, first come, first served."""

    @torch.inference_mode()
    def answer(turn: Turn) -> int:
        torch.manual_seed(turn.seed)
        ids = torch.tensor([turn.prompt_ids], device=loaded.device)
        config = GenerationConfig(
            do_sample=True,
            top_k=0,
            min_new_tokens=turn.num_new_tokens,
            max_new_tokens=turn.num_new_tokens,
            eos_token_id=sorted(loaded.layout.stop_ids),
            pad_token_id=loaded.layout.pad_id,
            suppress_tokens=sorted(loaded.banned_ids),
            **SAMPLING,
        )
        out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return int(out.shape[1]) - ids.shape[1]

    def play(talks: Conversations) -> Run:
        queues = [deque(turns) for turns in talks]
        started = time.perf_counter()
        line = deque((talk, started) for talk in range(len(talks)))
        latencies, num_tokens = [], 0
        while line:
            talk, sent = line.popleft()
            num_tokens += answer(queues[talk].popleft())
            now = time.perf_counter()
            latencies.append(now - sent)
            if queues[talk]:
                line.append((talk, now))
        return Run(time.perf_counter() - started, tuple(latencies), num_tokens)

    return play


def figures(runs: Sequence[Run]) -> Figures:
    """Summarise the rounds of one engine at one concurrency."""

    def middle(value: Callable[[Run], float]) -> float:
        return round(statistics.median(value(run) for run in runs), 3)

    return Figures(
        tokens_per_s=middle(lambda run: run.num_tokens / run.total_s),
        replies_per_s=middle(lambda run: len(run.latencies_s) / run.total_s),
        p50_s=middle(lambda run: percentile(run.latencies_s, 0.5)),
        p95_s=middle(lambda run: percentile(run.latencies_s, 0.95)),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def measure(model: str, *, dtype: str, num_rounds: int, num_turns: int) -> dict[str, object]:
    """Run both engines round by round, at each concurrency."""
    ours, theirs = (load_model(model, dtype=dtype) for _ in range(2))  # our engine changes its model's attention
    # The same threads for both, whatever else runs here.
    engine = Engine.for_model(ours, max_num_seqs=max(CONCURRENCIES), num_threads=torch.get_num_threads())
    runs: dict[str, dict[int, list[Run]]] = {OURS: {}, BASELINE: {}}
    with engine:
        players = {OURS: play_ours(engine), BASELINE: play_baseline(theirs)}
        for play in players.values():
            play(conversations(ours, number=2, num_turns=1))  # warm up
        for concurrency in CONCURRENCIES:
            # One conversation takes long enough to measure with a few times the turns.
            talks = conversations(ours, number=concurrency, num_turns=num_turns if concurrency > 1 else 3 * num_turns)
            for _ in range(num_rounds):
                for name, play in players.items():
                    runs[name].setdefault(concurrency, []).append(play(talks))
    return {
        "model": f"{ours.name}@{ours.digest}",
        "num_parameters": sum(p.numel() for p in ours.model.parameters()),
        "reason": ours.reason,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "num_rounds": num_rounds,
        "num_turns": num_turns,
        "engines": {
            name: {str(concurrency): asdict(figures(done)) for concurrency, done in by_concurrency.items()}
            for name, by_concurrency in runs.items()
        },
    }


def show(result: dict[str, object]) -> None:
    """Print a table, and how many times faster we are."""
    engines: dict[str, dict[str, dict[str, float]]] = result["engines"]  # type: ignore[assignment]
    table = Table(caption=f"{result['model']}; {result['reason']}; {result['machine']}", caption_justify="left")
    for column in ("engine", "conversations", "tokens/s", "replies/s", "p50 s", "p95 s", "times"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for concurrency, slow in engines[BASELINE].items():
        for name in engines:
            own = engines[name][concurrency]
            times = own["tokens_per_s"] / slow["tokens_per_s"]
            numbers = [f"{own[key]:.2f}" for key in ("tokens_per_s", "replies_per_s", "p50_s", "p95_s")]
            table.add_row(name, concurrency, *numbers, f"{times:.1f}")
        table.add_section()
    Console().print(table)


def main() -> None:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder, name or hub id; empty: the shipped default")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine runs (medians are shown)")
    parser.add_argument("--turns", type=int, default=4, help="turns of each conversation")
    parser.add_argument("--quick", action="store_true", help="one round of one turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    num_rounds, num_turns = (1, 1) if flags.quick else (flags.rounds, flags.turns)
    result = measure(flags.model, dtype=flags.dtype, num_rounds=num_rounds, num_turns=num_turns)
    if flags.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
