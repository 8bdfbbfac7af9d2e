"""The commands about checkpoints: what there is, who speaks with what, and going from one to another.

Administrators only. What they mean is the registry's affair, and of `personas.voices`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal

import redis
import structlog

from bots.command import Button, Caller, Command, Option, Response, admin_command
from bots.persona_commands import suggest_personas
from bots.retrain import YES, suggest_checkpoints
from bots.services import Services, in_thread
from personas.errors import PersonabotError, UnknownPersona
from personas.persona import Persona
from personas.registry import Registry, Version
from personas.voices import caution, give, given_voices, roll_back, speakers_of, withdraw
from worker.queue.job import Job, Order, State
from worker.queue.keys import QUEUED, WORKERS
from worker.queue.loaded import LoadedState, load_errors, loaded_models, set_order

log = structlog.get_logger(__name__)

MAX_LISTED: Final = 20
Change = Literal["chosen", "given", "promoted"]


async def list_models(services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Show every name with its current version and the personas that speak with it."""
    registry = services.workshop.registry
    return Response(await in_thread(_list, registry, await in_thread(_speakers, services)), is_private=True)


async def show(services: Services, _caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Show the versions of a name."""
    try:
        versions = await in_thread(services.workshop.registry.versions, arguments["name"].strip())
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    lines = [_line(version) for version in versions[-MAX_LISTED:]]
    return Response("\n".join([f"{versions[0].name}:", *lines]), is_private=True)


async def use(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Let a name be served wherever none is asked for, or by one persona alone: then it is that one's voice."""
    registry, name = services.workshop.registry, arguments["name"].strip()
    wanted = arguments.get("persona", "").strip()
    if not wanted:
        return await _changed(services, "chosen", partial(registry.choose, name), caller, "is served from now on")
    try:
        persona = services.catalogue.get(wanted)
    except UnknownPersona as error:
        return Response(str(error), is_private=True)
    how = f"speaks as {persona.name} from now on{_but(persona)}"
    return await _changed(services, "given", partial(give, registry, persona.name, name), caller, how)


async def unvoice(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Take a persona's voice away: it speaks with the default again."""
    wanted = arguments["persona"].strip()
    with contextlib.suppress(UnknownPersona):  # of one that has left the catalogue a voice may be left
        wanted = services.catalogue.get(wanted).name
    try:
        voice = await in_thread(withdraw, services.workshop.registry, wanted)
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    log.info("voice taken away", persona=voice.persona, checkpoint=voice.checkpoint, by=caller.user)
    return Response(f"{voice.persona} no longer speaks with {voice.checkpoint}.", is_private=True)


async def promote(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Make a version current; by force also one that the gate refused, which its record then says."""
    is_forced = arguments.get("force", "").strip().casefold() in YES
    promoted = partial(services.workshop.registry.promote, arguments["version"].strip(), is_forced=is_forced)
    return await _changed(services, "promoted", promoted, caller, "is current now; workers switch within seconds")


async def rollback(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Go back to the version before the current one; of a voice's first version to the default."""
    name = arguments["name"].strip()
    try:
        said = await in_thread(roll_back, services.workshop.registry, name, by=caller.user)
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    log.info("checkpoint rolled back", checkpoint=name, by=caller.user)
    await _remember(services, name, caller)
    return Response(f"{said}.", is_private=True)


async def compare(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Let two checkpoints answer the same prompts, as whoever speaks with one of them; a training worker does it."""
    one, other = arguments["one"].strip(), arguments["other"].strip()
    registry = services.workshop.registry
    try:
        named = [(await in_thread(registry.version, reference)).reference for reference in (one, other)]
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    speaking = await in_thread(_speakers, services)
    order = Order(
        "compare",
        "",
        "",
        base=named[0],
        other=named[1],
        persona=next((who for name in named for who in _speaking_with(name.partition("@")[0], speaking)), ""),
        by=caller.user,
        by_name=caller.author_name,
        conversation=str(caller.conversation),
    )
    job = await in_thread(services.workshop.submit, order, caller.conversation.platform)
    return Response(f"Job {job.id}: their replies to the same prompts appear here.", is_private=True)


async def status(services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Show who is at work, on which weights, and what waits."""
    num_workers = await services.redis.zcard(WORKERS)
    waiting = await services.redis.zcard(QUEUED)
    jobs = await in_thread(services.workshop.jobs.open)
    speaking = await in_thread(_speakers, services)
    lines = [
        f"Workers: {num_workers}",
        *await in_thread(_loaded, services.workshop.jobs.redis, speaking),
        *_voices(speaking),
        f"Conversations that wait: {waiting}",
        f"Training: {_num(jobs, State.TRAINING, State.JUDGING)} running, {_num(jobs, State.QUEUED)} queued, "
        f"{_num(jobs, State.CHECKING, State.PROPOSED)} not confirmed",
    ]
    return Response("\n".join(lines), is_private=True)


def _speakers(services: Services) -> dict[str, list[str]]:
    """Return the personas that speak with a checkpoint of their own, by its reference."""
    try:
        given = given_voices(services.workshop.registry)
    except PersonabotError as error:  # workers report it, too: /status shows that
        log.warning("voices not readable", error=str(error))
        given = {}
    return speakers_of((entry.persona for entry in services.catalogue), given)


def _speaking_with(name: str, speaking: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the personas that speak with the name, whether or not a file pins a version of it."""
    return [who for reference, people in speaking.items() if reference.partition("@")[0] == name for who in people]


def _voices(speaking: Mapping[str, Sequence[str]]) -> list[str]:
    """Say in a line who speaks with what; none where all speak with the default."""
    said = [f"{persona} with {name}" for name, personas in speaking.items() for persona in personas]
    more = f" and {len(said) - MAX_LISTED} more" if len(said) > MAX_LISTED else ""
    return [f"Voices: {', '.join(said[:MAX_LISTED])}{more}"] if said else []


def _but(persona: Persona) -> str:
    """Say what keeps a persona from speaking with its voice."""
    if not persona.checkpoint:
        return ""
    return f", once the line checkpoint: {persona.checkpoint} is gone from the persona's file: that comes first"


def _list(registry: Registry, speaking: Mapping[str, Sequence[str]]) -> str:
    chosen = registry.chosen()
    lines = []
    for name in registry.names()[:MAX_LISTED]:
        versions = registry.versions(name)
        current = next((version.version for version in versions if version.is_current), "nothing current")
        mark = "▸" if name == chosen else "•"
        speaks = f", speaks as {', '.join(personas)}" if (personas := _speaking_with(name, speaking)) else ""
        lines.append(f"{mark} {name}: {current} ({len(versions)} version{'s' if len(versions) > 1 else ''}){speaks}")
    return "\n".join(lines or ["No checkpoints yet."])


def _line(version: Version) -> str:
    said = [f"{'▸' if version.is_current else '•'} {version.version}"]
    if version.lineage.base:
        said.append(f"from {version.lineage.base}")
    if version.lineage.by:
        said.append(f"by {version.lineage.by}")
    if version.lineage.is_refused:
        said.append(f"{version.lineage.judgement}: {'; '.join(version.lineage.reasons)}")
    elif version.lineage.forced_by:
        said.append(f"by force of {version.lineage.forced_by}")
    return ", ".join(said)


def _loaded(client: redis.Redis, speaking: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what each worker has in memory, and what it failed to load."""
    lines = [
        f"• {worker}: {model.reference or model.name} ({model.digest}) for {_served(model, speaking)}"
        for worker, models in loaded_models(client).items()
        for model in models
    ]
    return lines + [
        f"• {error.worker} could not load {error.reference}: {error.reason}" for error in load_errors(client)
    ]


def _served(model: LoadedState, speaking: Mapping[str, Sequence[str]]) -> str:
    names = [["everybody"] if name == "" else speaking.get(name, [name]) for name in model.serves]
    return ", ".join(each for group in names for each in group) or "nobody now"


async def _changed(
    services: Services, what: Change, change: Callable[..., Version], caller: Caller, how: str
) -> Response:
    """Make a change of what is served, and say what it is now."""
    try:
        version = await in_thread(change, by=caller.user)
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    log.info("checkpoint changed", version=version.reference, by=caller.user, change=what)
    await _remember(services, version.name, caller)
    undo = (Button("Undo", "model rollback", version.name),) if what == "promoted" else ()
    warning = f"\n{caution(version)}" if what == "given" and caution(version) else ""
    return Response(f"{version.reference} {how}.{warning}", buttons=(undo,) if undo else (), is_private=True)


async def _remember(services: Services, name: str, caller: Caller) -> None:
    """Note where to tell that a worker could not load what was changed to."""
    try:
        await in_thread(set_order, services.workshop.jobs.redis, name, caller.conversation)
    except redis.RedisError as error:  # the change holds all the same
        log.warning("a model that can't be loaded will not be told of", checkpoint=name, error=repr(error))


def _num(jobs: Sequence[Job], *states: State) -> int:
    return sum(job.state in states for job in jobs)


_NAME = Option("name", "a checkpoint's name", suggest=suggest_checkpoints)

MODEL_COMMANDS: Final[tuple[Command, ...]] = (
    admin_command("model list", "which checkpoints there are", list_models),
    admin_command("model show", "the versions of a checkpoint", show, (_NAME,)),
    admin_command(
        "model use",
        "serve another checkpoint, to everybody or as one persona's voice",
        use,
        (_NAME, Option("persona", "whose voice it becomes", is_required=False, suggest=suggest_personas)),
    ),
    admin_command(
        "model unvoice",
        "let a persona speak with the default again",
        unvoice,
        (Option("persona", "the persona's name", suggest=suggest_personas),),
    ),
    admin_command(
        "model promote",
        "make a version current",
        promote,
        (
            Option("version", "NAME@VERSION", suggest=suggest_checkpoints),
            Option("force", "yes: although the gate refused it", is_required=False),
        ),
    ),
    admin_command("model rollback", "go back to the version before", rollback, (_NAME,)),
    admin_command(
        "model compare",
        "two checkpoints answer the same prompts",
        compare,
        (
            Option("one", "NAME or NAME@VERSION", suggest=suggest_checkpoints),
            Option("other", "NAME or NAME@VERSION", suggest=suggest_checkpoints),
        ),
    ),
    admin_command("status", "who is at work, on what, and what waits", status),
)
