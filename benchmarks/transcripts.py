"""Write docs/transcripts.md: the same people's messages answered by both shipped models, as the replies come.

    python benchmarks/transcripts.py --seed 7 > docs/transcripts.md

Each model goes on with its own replies. Nothing is picked: change the seed, and you get other replies.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.logs import configure_logging
from personas.persona import GenerationSettings, Persona
from personas.settings import load_settings
from worker.engine.engine import Engine
from worker.loading import load_model
from worker.respond import Responder

MODELS = ("smollm2-persona", "starter")
TALKS: dict[str, list[str]] = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))


def talk(responder: Responder, persona: Persona, messages: Sequence[str], seed: int) -> list[str]:
    """Return the replies to `messages`, one running conversation that begins with the greeting."""
    turns = [Turn(Role.BOT, persona.greeting)] if persona.greeting else []
    replies = []
    for number, message in enumerate(messages):
        turns.append(Turn(Role.USER, message))
        own_seed = zlib.crc32(f"{seed}:{persona.name}:{number}".encode())
        replies.append(responder.respond(persona, turns, GenerationSettings(seed=own_seed)).text)
        turns.append(Turn(Role.BOT, replies[-1]))
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    seed = parser.parse_args().seed
    configure_logging(load_settings(log_level="warning"))
    catalogue = load_catalogue(None)
    columns: dict[str, dict[str, list[str]]] = {}
    digests = []
    for model in MODELS:
        loaded = load_model(model)
        digests.append(f"{model} {loaded.digest}")
        with Engine.for_model(loaded) as engine:
            responder = Responder(loaded, engine)
            columns[model] = {name: talk(responder, catalogue.get(name), lines, seed) for name, lines in TALKS.items()}
    sys.stdout.write(page(seed, digests, [(catalogue.get(name), lines) for name, lines in TALKS.items()], columns))


def page(
    seed: int, digests: list[str], talks: list[tuple[Persona, list[str]]], replies: dict[str, dict[str, list[str]]]
) -> str:
    """Return the Markdown page; `replies` by model, then by persona."""
    parts = [
        f"# Transcripts\n\nAs they came: `python benchmarks/transcripts.py --seed {seed}`, checkpoints "
        f"{', '.join(digests)}.\nThe quoted line is the persona's own greeting; the replies are the models'.\n"
    ]
    for persona, lines in talks:
        parts.append(f"\n## {persona.name}\n\n*{' '.join(persona.facts)}*\n\n> {persona.greeting}\n\n")
        parts.append(f"| you | {' | '.join(MODELS)} |\n|---|---|---|\n")
        for number, line in enumerate(lines):
            said = [replies[model][persona.name][number] for model in MODELS]
            cells = [text.replace("\n", "<br>").replace("|", "\\|") for text in (line, *said)]
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    main()
