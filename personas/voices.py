"""Voices: which checkpoint a persona speaks with. Owns that decision, and the file beside the registry that says it.

What a persona's own file says comes first: an operator wrote it down, and may have pinned a version. Then comes the
voice that was given to it: a checkpoint's name like any other, whose promotions and rollbacks hold. The rest speak with
the default. Knows no models; what is loaded, and when, is the worker's affair.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from filelock import FileLock

from personas.catalogue import load_catalogue
from personas.errors import NoEarlierVersion, RegistryError
from personas.lineage import Voice, Voices, read_record, write_record
from personas.persona import Persona
from personas.registry import VOICES_FILE, Registry, Version
from personas.settings import Settings

CORPUS_CAUTION: Final = (
    "Its layout is corpus: it goes on with whatever text it is given. It knows neither the persona's facts nor who "
    "said what, so it follows no conversation. For that, train the text on a model that talks: /retrain start."
)
Given = Mapping[str, str]  # a persona's key (see `key_of`) → the name that it was given


def key_of(name: str) -> str:
    """Return the persona's name as it is compared: upper and lower case, and runs of spaces, count as the same."""
    return " ".join(name.split()).casefold()


def checkpoint_of(persona: Persona, given: Given) -> str:
    """Return the reference that `persona` speaks with; "" for the default."""
    return persona.checkpoint or given.get(key_of(persona.name), "")


def speakers(personas: Iterable[Persona], given: Given) -> dict[str, str]:
    """Return the personas that speak with a checkpoint of their own, by name, and its reference."""
    return {persona.name: reference for persona in personas if (reference := checkpoint_of(persona, given))}


def speakers_of(personas: Iterable[Persona], given: Given) -> dict[str, list[str]]:
    """Return the same the other way round: by reference, the names of the personas that speak with it."""
    names: dict[str, list[str]] = {}
    for name, reference in speakers(personas, given).items():
        names.setdefault(reference, []).append(name)
    return names


def heard_by_others(
    name: str, persona: Persona | None, personas: Iterable[Persona], given: Given, served: Collection[str]
) -> str:
    """Return why a training for `persona` (None: for everybody) can't be called `name`, in words; empty if it can.

    Its promotion must change what that persona says, and nobody else. `served` are the names that answer for personas
    without a checkpoint.
    """
    own = persona.name if persona else ""
    others = [who for who, said in speakers(personas, given).items() if said.partition("@")[0] == name and who != own]
    if persona is None:
        given_to = [each for each in others if key_of(each) in given]
        if not given_to or name in served:
            return ""
        return f"{name} is the voice of {', '.join(given_to)}: train it with persona={given_to[0]}, or call this other"
    if persona.checkpoint not in (None, name):
        return f"{own}'s file says checkpoint: {persona.checkpoint}, which wins over a voice: take that line out first"
    if name in served:
        return f"{name} is what answers for everybody: call the voice of {own} something else"
    return f"{', '.join(others)} would speak with {name} too: call the voice of {own} something else" if others else ""


def obstacle(settings: Settings, name: str, persona_name: str) -> str:
    """Return why nothing may be trained for that persona ("": for everybody) under `name`; see `heard_by_others`."""
    registry, catalogue = Registry.of(settings), load_catalogue(settings.personas_dir)
    persona = catalogue.get(persona_name) if persona_name else None
    served = {(registry.chosen() or settings.model).partition("@")[0]}
    if registry.has(name) and any(version.is_shipped for version in registry.versions(name)):
        served.add(name)
    personas = [entry.persona for entry in catalogue]
    return heard_by_others(name, persona, personas, given_voices(registry), served)


def pinned(settings: Settings) -> frozenset[str]:
    """Return the references that personas' files and the settings name: in use, even while nobody has them loaded."""
    personas = (entry.persona for entry in load_catalogue(settings.personas_dir))
    return frozenset(filter(None, (settings.model, *(persona.checkpoint for persona in personas))))


def read_voices(registry: Registry) -> Voices:
    """Return what `voices.json` says; raises `RegistryError` for a damaged one."""
    path = registry.folder / VOICES_FILE
    return read_record(path, Voices) if path.is_file() else Voices()


def given_voices(registry: Registry) -> dict[str, str]:
    """Return the names that personas were given, by the personas' keys."""
    return {key_of(voice.persona): voice.checkpoint for voice in read_voices(registry).voices}


def speaks_with(settings: Settings, persona: Persona) -> str:
    """Return the reference that `persona` speaks with now; "" for the default."""
    return checkpoint_of(persona, given_voices(Registry.of(settings)))


def give(registry: Registry, persona: str, name: str, *, by: str = "") -> Version:
    """Let `persona` speak with the name, whichever of its versions is current; workers load that within seconds.

    Raises `RegistryError` for a name that is not known or has no current version.
    """
    version = registry.served(name.partition("@")[0])
    if registry.pointer(version.name).is_withdrawn:  # it speaks again, so that a rollback may return to it again
        version = registry.promote(version.reference, by=by)
    with _lock(registry):
        others = tuple(voice for voice in read_voices(registry).voices if key_of(voice.persona) != key_of(persona))
        voice = Voice(persona=persona, checkpoint=version.name, by=by)
        write_record(registry.folder / VOICES_FILE, Voices(voices=(*others, voice)))
    return version


def withdraw(registry: Registry, persona: str) -> Voice:
    """Let `persona` speak with the default again, and return what it spoke with; raises `RegistryError`."""
    with _lock(registry):
        voices = read_voices(registry).voices
        taken = [voice for voice in voices if key_of(voice.persona) == key_of(persona)]
        if not taken:
            there = ", ".join(voice.persona for voice in voices) or "nobody"
            raise RegistryError(f"{persona} was given no voice. One was given to: {there}.")
        rest = tuple(voice for voice in voices if voice not in taken)
        write_record(registry.folder / VOICES_FILE, Voices(voices=rest))
    return taken[0]


def roll_back(registry: Registry, name: str, *, by: str = "") -> str:
    """Take the last promotion of `name` back, and say what holds now.

    Below a voice's first version is the default: it is taken away from its personas, and no later rollback returns to
    that version. Raises `NoEarlierVersion` where nobody speaks with it either.
    """
    try:
        return f"{registry.rollback(name, by=by).reference} is current again"
    except NoEarlierVersion:
        personas = [voice.persona for voice in read_voices(registry).voices if voice.checkpoint == name]
        if not personas:
            raise
    registry.withdraw(name, by=by)
    for persona in personas:
        withdraw(registry, persona)
    return f"{name} has no earlier version: {', '.join(personas)} will speak with the default again"


def caution(version: Version) -> str:
    """Return what people should know before a persona speaks with `version`; empty for most."""
    layout = json.loads((version.folder / "layout.json").read_text(encoding="utf-8"))
    return CORPUS_CAUTION if layout.get("name") == "corpus" else ""


def _lock(registry: Registry) -> FileLock:
    registry.folder.mkdir(parents=True, exist_ok=True)
    return FileLock(registry.folder / ".voices.lock")
