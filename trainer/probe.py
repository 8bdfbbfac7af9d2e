"""The persona probe: does a reply use the fact that was asked for? Owns asking and judging, not the questions."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from worker.respond import Responder

from personas.catalogue import Catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from trainer.probes import Probe, Probes

NUM_THREADS = 16


@dataclass(slots=True)
class ProbeResult:
    """Every question with its reply and verdict."""

    seed: int
    answers: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """Return the shares of name and fact questions that were answered with what was asked for."""
        names = [answer["used"] for answer in self.answers if answer["kind"] == "name"]
        facts = [answer["used"] for answer in self.answers if answer["kind"] == "fact"]
        return {
            "names": sum(names) / max(len(names), 1),
            "facts": sum(facts) / max(len(facts), 1),
            "num_names": len(names),
            "num_facts": len(facts),
            "seed": self.seed,
        }


def probe(responder: Responder, catalogue: Catalogue, probes: Probes, *, seed: int) -> ProbeResult:
    """Ask every question in a fresh conversation that begins with the persona's greeting, at default sampling."""
    questions = [
        (catalogue.get(name), entry, question)
        for name, entries in probes.personas.items()
        for entry in entries
        for question in entry.ask
    ]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        answers = pool.map(lambda item: _ask(responder, *item, seed=seed), questions)
    return ProbeResult(seed, list(answers))


def _ask(responder: Responder, persona: Persona, entry: Probe, question: str, *, seed: int) -> dict[str, Any]:
    turns = [Turn(Role.BOT, persona.greeting)] if persona.greeting else []
    turns.append(Turn(Role.USER, question))
    own_seed = zlib.crc32(f"{seed}:{persona.name}:{question}".encode())
    reply = responder.respond(persona, turns, GenerationSettings(seed=own_seed))
    return {
        "persona": persona.name,
        "kind": entry.kind,
        "fact": entry.fact,
        "question": question,
        "reply": reply.text,
        "used": entry.is_used_in(reply.text),
        "seed": own_seed,
    }
