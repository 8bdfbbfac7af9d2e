"""What several candidates are worth: the persona probe, repetition in conversations, and what a reply costs.

    python -m benchmarks.candidates models/smollm2-persona --candidates 1 3 4 --questions 120

The conversations are those of benchmarks/transcripts.yaml, each going on with its own replies. Repetition is the share
of a reply's runs of three words that its own earlier replies, the person's message, or itself hold already. Beside
other programs CPU time is the steadier measure of cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.transcripts import TALKS, talk
from personas.catalogue import load_catalogue
from personas.logs import configure_logging
from personas.persona import GenerationSettings
from personas.settings import load_settings
from trainer.probe import probe
from trainer.probes import load_probes
from worker.engine.engine import Engine
from worker.loading import LoadedModel, load_model
from worker.ranking import ngrams, repeated, shared
from worker.respond import Reply, Responder

NUM_THREADS = 16


class Counting(Responder):
    """Counts what is said, and is drawn, on the way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.num_said = 0

    def respond(self, *args: Any, **options: Any) -> Reply:
        reply = super().respond(*args, **options)
        self.num_said += reply.num_new_tokens
        return reply


def repetition(replies: Sequence[str], messages: Sequence[str]) -> list[tuple[float, float, float]]:
    """Return for each reply the shares that repeat earlier replies, the person, and itself."""
    rows = []
    for number, reply in enumerate(replies):
        grams = ngrams(reply)
        rows.append((shared(grams, replies[:number]), shared(grams, [messages[number]]), repeated(grams)))
    return rows


def measure(
    loaded: LoadedModel, num_candidates: int, *, num_questions: int, seed: int, num_talks: int
) -> dict[str, Any]:
    """Return the figures of one setting, from an engine that has seen nothing before."""
    catalogue = load_catalogue(None)
    settings = GenerationSettings(candidates=num_candidates)
    with Engine.for_model(loaded) as engine:
        responder = Counting(loaded, engine, defaults=settings)
        started, cpu_started = time.perf_counter(), time.process_time()
        probed = probe(responder, catalogue, load_probes(), seed=seed, limit=num_questions).metrics()
        talks = list(TALKS.items())[:num_talks]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            said = list(pool.map(lambda item: talk(responder, catalogue.get(item[0]), item[1], seed), talks))
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    rows = [row for replies, (_, lines) in zip(said, talks, strict=True) for row in repetition(replies, lines)]
    own, persons, within = (statistics.mean(column) for column in zip(*rows, strict=True))
    return {
        "candidates": num_candidates,
        "names": probed["names"],
        "num_names": probed["num_names"],
        "facts": probed["facts"],
        "num_facts": probed["num_facts"],
        "repeats_itself": own,
        "repeats_person": persons,
        "repeats_within": within,
        "num_replies": len(rows) + probed["num_names"] + probed["num_facts"],
        "said_tokens_per_s": responder.num_said / took_s,
        "cpu_ms_per_said_token": 1000 * cpu_s / responder.num_said,
        "took_s": took_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--talks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    configure_logging(load_settings(log_level="error"))
    loaded = load_model(options.model)
    for number in options.candidates:
        figures = measure(loaded, number, num_questions=options.questions, seed=options.seed, num_talks=options.talks)
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
