"""A few replies of a checkpoint to fixed prompts, so that people can hear what a training changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry
from personas.settings import Settings
from trainer.retraining.starting_point import folder_of
from worker.engine.engine import Engine
from worker.loading import load_model
from worker.queue.job import Order
from worker.respond import Responder

PROMPTS: Final = (
    "Hi! How are you today?",
    "What is your name?",
    "What do you do for a living?",
    "What did you do last weekend?",
    "Tell me something about yourself.",
)
SEED: Final = 7


def replies(model: str, persona: Persona, settings: Settings, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Return one reply to each prompt, each the first of a conversation, with a seed that is always the same."""
    loaded = load_model(model, device=settings.device, dtype=settings.dtype)
    with Engine.for_model(loaded) as engine:
        responder = Responder(loaded, engine)
        return [
            responder.respond(persona, [Turn(Role.USER, prompt)], GenerationSettings(seed=SEED)).text
            for prompt in prompts
        ]


def speaker(settings: Settings, name: str = "") -> Persona:
    """Return the persona that speaks the samples: `name`, or who speaks where nobody was chosen."""
    catalogue = load_catalogue(settings.personas_dir)
    return catalogue.get(name or settings.default_persona or catalogue.names()[0])


def compared(order: Order, settings: Settings) -> dict[str, Any]:
    """Return the replies of the order's two checkpoints to the same prompts."""
    persona = speaker(settings, order.persona)
    registry = Registry.of(settings)
    result: dict[str, Any] = {"prompts": list(PROMPTS), "names": [order.base, order.other]}
    for side, reference in (("before", order.base), ("after", order.other)):
        model = str(folder_of(registry, reference) or reference)
        result[side] = {"replies": replies(model, persona, settings)}
    return result
