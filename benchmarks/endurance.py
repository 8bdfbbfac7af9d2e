"""Hours of random load on a worker's models: does memory grow, is each slot free again, does each request end one way.

    python -m benchmarks.endurance                       # an hour with the shipped starter, about a quarter of a core
    python -m benchmarks.endurance --minutes 5 --seed 2 --json

The pool of models is a worker's own (`worker.models`); its engines have few slots, a short queue and a small memory of
prefixes. Two copies of the model take over from each other under the load of `benchmarks.load`. After each minute
nobody speaks until all is answered; then what the process holds is noted, and a greedy reply has to be the one it was
before the load. Exit status 1, with the reason, if a request did not end, ended by a defect, or held a slot, or if that
reply was refused or changed. Memory is reported: its slope in MB an hour, and whether its median of the last quarter
of the samples is more than 2 % above that of the second quarter.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.load import NUM_ROOMS, NUM_SLOTS, Load, Pace
from benchmarks.witness import Sample, Witness, growth
from personas.logs import configure_logging
from personas.registry import Registry
from personas.settings import Settings
from worker.loading import find_model
from worker.models import ModelPool

LIMITS = {"max_num_waiting": 24, "max_saved_bytes": 16 << 20}  # of prefixes: some 900 tokens of the starter
MEASURED = ("resident_mb", "allocated_mb", "num_blocks")


def endure(
    places: Sequence[Path],
    pace: Pace,
    *,
    num_rounds: int,
    max_s: float = math.inf,
    seed: int = 1,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Load the models at `places` by turns, for `num_rounds` or until `max_s` have passed; return the figures.

    `tell` is given a line after each round. The first sample is of before the load.
    """
    witness, started = Witness(seed), time.monotonic()
    samples: list[Sample] = []
    names = [f"model{number}" for number in range(len(places))]
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder), model=names[0], device="cpu", dtype="float32", max_num_seqs=NUM_SLOTS
        )
        registry = Registry.of(settings)
        for name, place in zip(names, places, strict=True):
            registry.promote(registry.add(place, name).reference)
        with (
            witness.watching(**LIMITS),
            ModelPool(settings, idle_s=pace.idle_s) as pool,
            ThreadPoolExecutor(NUM_ROOMS) as executor,
        ):
            load = Load(pool, registry, names, witness, executor, pace, seed)
            load.settle()
            samples.append(Sample.taken(time.monotonic() - started))
            while len(samples) <= num_rounds and time.monotonic() - started < max_s:
                load.run()
                load.settle()
                samples.append(Sample.taken(time.monotonic() - started))
                tell(line(samples[-1], witness, load))
    return {
        "seconds": round(time.monotonic() - started),
        "cpu_s": round(time.process_time()),
        "messages": load.num_messages,
        "requests": witness.num_asked,
        "endings": dict(witness.endings),
        "swaps": load.num_swaps,
        "engines": len(witness.counts),
        "prefixes_evicted": sum(counts.num_evicted for counts in witness.counts),
        "tokens_joined": sum(counts.num_tokens for counts in witness.counts),
        "tokens_reused": sum(counts.num_reused_tokens for counts in witness.counts),
        "memory": {name: growth(samples, name) for name in MEASURED},
        "failures": list(dict.fromkeys(load.failures)),
        "samples": [asdict(sample) for sample in samples],
    }


def line(sample: Sample, witness: Witness, load: Load) -> str:
    """Tell one round, and what has failed so far."""
    return (
        f"{sample.at_s / 60:5.1f} min  {sample.resident_mb:.1f} MB resident, {sample.allocated_mb:.1f} MB allocated, "
        f"{sample.num_blocks} blocks, {sample.num_threads} threads, {sample.num_files} files, "
        f"{witness.num_slots_in_use} slots, {witness.num_engines} engines, {load.num_swaps} swaps, "
        f"{load.num_messages} messages, {witness.num_asked} requests: {dict(sorted(witness.endings.items()))}"
        + "".join(f"\n{'':11}FAILED: {failure}" for failure in dict.fromkeys(load.failures))
    )


def main(
    model: Annotated[str, typer.Option(help="a folder or a shipped model")] = "models/starter",
    minutes: Annotated[int, typer.Option(min=1)] = 60,
    seed: int = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and the lines to stderr")] = False,
) -> None:
    """Load a model for some minutes; exit status 1 if a request did not end as it should."""
    found = find_model(model)
    if not isinstance(found.place, Path):
        raise SystemExit(f"{model}: expected a folder or a shipped model")
    configure_logging(Settings(log_level="warning"))
    result = endure(
        [found.place] * 2,
        Pace(),
        num_rounds=minutes,
        max_s=60 * minutes,
        seed=seed,
        tell=lambda told: print(told, file=sys.stderr if as_json else sys.stdout, flush=True),
    )
    print(json.dumps(result) if as_json else summary(result))
    raise SystemExit(int(bool(result["failures"])))


def summary(result: dict[str, Any]) -> str:
    """Tell the whole."""
    figures = {name: value for name, value in result.items() if name not in ("memory", "failures", "samples")}
    memory = [f"{name}: {judged}" for name, judged in result["memory"].items()]
    return "\n".join([str(figures), *memory, *(f"FAILED: {failure}" for failure in result["failures"])])


if __name__ == "__main__":
    typer.run(main)
