"""The persona probe: does a reply use the fact that was asked for? Owns asking and judging, not the questions."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from personas.catalogue import Catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from trainer.augment import is_trained_wording
from trainer.probes import Probe, Probes
from worker.respond import Responder

NUM_THREADS = 16
DEFAULT_SAMPLING = GenerationSettings()


@dataclass(slots=True)
class ProbeResult:
    """Every question with its reply and verdict."""

    seed: int
    answers: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        """Return the shares of name and fact questions that were answered with what was asked for.

        `…_new_wording` counts only questions whose words did not occur in training's own questions.
        """
        figures: dict[str, Any] = {"seed": self.seed}
        for kind in ("name", "fact"):
            answers = [answer for answer in self.answers if answer["kind"] == kind]
            unseen = [answer for answer in answers if not answer["trained_wording"]]
            figures |= {f"{kind}s": _share(answers), f"num_{kind}s": len(answers)}
            figures |= {f"{kind}s_new_wording": _share(unseen), f"num_{kind}s_new_wording": len(unseen)}
        return figures


def probe(
    responder: Responder,
    catalogue: Catalogue,
    probes: Probes,
    *,
    seed: int,
    limit: int | None = None,
    settings: GenerationSettings = DEFAULT_SAMPLING,
) -> ProbeResult:
    """Ask every question in a fresh conversation that begins with the persona's greeting, at default sampling.

    With `limit`, about so many questions, evenly spread over all personas.
    """
    questions = [(catalogue.get(name), entry, question) for name, entry, question in probes.questions()]
    questions = questions[:: max(len(questions) // limit, 1)] if limit else questions
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        answers = pool.map(lambda item: _ask(responder, *item, seed=seed, settings=settings), questions)
    return ProbeResult(seed, list(answers))


def _ask(
    responder: Responder, persona: Persona, entry: Probe, question: str, *, seed: int, settings: GenerationSettings
) -> dict[str, Any]:
    turns = [Turn(Role.BOT, persona.greeting)] if persona.greeting else []
    turns.append(Turn(Role.USER, question))
    own_seed = zlib.crc32(f"{seed}:{persona.name}:{question}".encode())
    reply = responder.respond(persona, turns, GenerationSettings(seed=own_seed).over(settings))
    return {
        "persona": persona.name,
        "kind": entry.kind,
        "fact": entry.fact,
        "question": question,
        "reply": reply.text,
        "trained_wording": is_trained_wording(question),
        "used": entry.is_used_in(reply.text),
        "seed": own_seed,
    }


def _share(answers: list[dict[str, Any]]) -> float:
    return float(sum(answer["used"] for answer in answers)) / max(len(answers), 1)
