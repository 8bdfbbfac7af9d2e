"""The general set: what a model is expected to know whatever it is trained on. Read from `general.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from trainer.formats import Dialogue

GENERAL = Path(__file__).with_name("general.yaml")


@cache
def general_set() -> tuple[Dialogue, ...]:
    """Return the shipped small talk from both sides, and the example exchanges of the shipped personas."""
    talks = [_small_talk(entry) for entry in YAML(typ="safe").load(GENERAL)]
    catalogue = load_catalogue(None)
    exchanges = []
    for persona in map(catalogue.get, catalogue.names()):
        greeting = [Turn(Role.BOT, persona.greeting)] if persona.greeting else []
        examples = [turn for e in persona.examples for turn in (Turn(Role.USER, e.user), Turn(Role.BOT, e.bot))]
        exchanges.append(Dialogue(persona.facts, (*greeting, *examples)))
    return (*talks, *(talk.flipped() for talk in talks), *exchanges)


def _small_talk(entry: dict[str, list[str]]) -> Dialogue:
    roles = (Role.USER, Role.BOT)
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(entry["turns"]))
    return Dialogue(tuple(entry["facts"]), turns)
