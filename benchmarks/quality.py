"""What 8 and 16 bits cost: perplexity on held-out dialogue in each number format, by the engine's networks.

    python -m benchmarks.quality ../shared/data/convai2/valid_both_original_no_cands.txt --limit 100

Ends with status 1 if a format's perplexity is more than 1 % above float32's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.engine import dtypes_here
from personas.layout import Example, Part
from personas.logs import configure_logging
from personas.settings import load_settings
from trainer.formats import read_dialogues
from worker.device import DTYPES
from worker.engine.attention import RaggedStep, Span
from worker.engine.cache import KVCache
from worker.engine.models import Network, network_for
from worker.loading import LoadedModel, load_model

MAX_LOSS = 0.01


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="held-out dialogue, in any format that training reads")
    parser.add_argument("--model", default="", help="folder, name or hub id; empty: the shipped default")
    parser.add_argument("--limit", type=int, help="only the first so many dialogues")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    loaded = load_model(flags.model, device="cpu", dtype="float32")
    examples = list(examples_of(loaded, flags.data, flags.limit))
    perplexities = {name: perplexity(network_of(loaded, name), examples) for name in dtypes_here("all")}
    worst = max(value / perplexities["float32"] - 1 for value in perplexities.values())
    if flags.json:
        print(json.dumps({"model": loaded.name, "digest": loaded.digest, "ppl_token": perplexities}))
    else:
        print(f"{loaded.name}@{loaded.digest}, {flags.data.name}, {len(examples)} examples")
        for name, value in perplexities.items():
            print(f"{name:10} {value:9.4f} {value / perplexities['float32'] - 1:+.3%}")
    return int(worst > MAX_LOSS)


def examples_of(loaded: LoadedModel, data: Path, limit: int | None) -> Iterable[Example]:
    """Lay out the dialogues as training does."""
    for dialogue in itertools.islice(read_dialogues(data), limit):
        yield from loaded.layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=loaded.window)


def network_of(loaded: LoadedModel, dtype: str) -> Network:
    """Return the engine's network of the model."""
    network = network_for(loaded.model, dtype=DTYPES[dtype])
    if network is None:
        sys.exit(f"{loaded.name}: the engine has no network of its own for {loaded.model.config.model_type}")
    return network


@torch.inference_mode()
def perplexity(network: Network, examples: Iterable[Example]) -> float:
    """The perplexity per token of the bot's turns, their stop tokens included."""
    total, num_tokens = 0.0, 0
    for example in examples:
        ids, positions = torch.tensor(example.ids), torch.arange(len(example.ids))
        cache = KVCache(max_num_rows=1, max_num_tokens=len(ids), dtype=torch.float32)
        step = RaggedStep([Span(0, len(ids), 0, 0)], rows=torch.zeros_like(ids), positions=positions, cache=cache)
        scored = torch.tensor([place for place, part in enumerate(example.parts) if part != Part.CONTEXT])
        scores = network(ids, positions, scored - 1, step)[0].float()
        total += float(torch.nn.functional.cross_entropy(scores, ids[scored], reduction="none").double().sum())
        num_tokens += len(scored)
    return math.exp(total / num_tokens)


if __name__ == "__main__":
    sys.exit(main())
