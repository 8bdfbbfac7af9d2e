"""For tests of the pool: who speaks, what is said to them, and a board that remembers what it was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.registry import Version
from worker.models import ModelPool
from worker.queue.loaded import LoadedState

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=12)
SEEDED = GenerationSettings(seed=7, temperature=1.0, max_new_tokens=12)
ADA = Persona(name="Ada", facts=("My name is Ada.",))
BOB = Persona(name="Bob", facts=("My name is Bob.",))
HELLO = [Turn(Role.USER, "hello there, how are you?")]


@dataclass
class Seen:
    """A board that remembers."""

    models: list[LoadedState] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def show(self, models: Sequence[LoadedState]) -> None:
        self.models = list(models)

    def failed(self, reference: str, reason: str) -> None:
        self.failures.append((reference, reason))


def says(pool: ModelPool, persona: Persona = ADA, settings: GenerationSettings = GREEDY) -> tuple[str, str]:
    reply = pool.respond(persona, HELLO, settings)
    return reply.model, reply.text


def answering(pool: ModelPool, version: Version, persona: Persona = ADA) -> Callable[[], bool]:
    return lambda: says(pool, persona)[0] == f"{version.name}@{version.digest}"


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
