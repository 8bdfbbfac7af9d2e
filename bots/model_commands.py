"""The commands about checkpoints: what there is, what is served, and going from one to another. Administrators only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import redis
import structlog

from bots.command import Button, Caller, Command, Option, Response, admin_command
from bots.retrain import YES, suggest_checkpoints
from bots.services import Services, in_thread
from personas.errors import PersonabotError
from personas.registry import Registry, Version
from worker.queue.job import Job, Order, State
from worker.queue.keys import QUEUED, WORKERS
from worker.queue.loaded import LoadedState, load_errors, loaded_models

log = structlog.get_logger(__name__)

MAX_LISTED: Final = 20


async def list_models(services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Show every name with its current version."""
    return Response(await in_thread(_list, services.workshop.registry), is_private=True)


async def show(services: Services, _caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Show the versions of a name."""
    try:
        versions = await in_thread(services.workshop.registry.versions, arguments["name"].strip())
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    lines = [_line(version) for version in versions[-MAX_LISTED:]]
    return Response("\n".join([f"{versions[0].name}:", *lines]), is_private=True)


async def use(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Let a name be served wherever none is asked for."""
    return await _changed(services.workshop.registry.choose, arguments["name"], caller, "is served from now on")


async def promote(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Make a version current; by force also one that the gate refused, which its record then says."""
    is_forced = arguments.get("force", "").strip().casefold() in YES
    registry = services.workshop.registry

    def promoted(reference: str, *, by: str) -> Version:
        return registry.promote(reference, by=by, is_forced=is_forced)

    return await _changed(promoted, arguments["version"], caller, "is current now; workers switch within seconds")


async def rollback(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Go back to the version before the current one."""
    registry = services.workshop.registry
    return await _changed(registry.rollback, arguments["name"], caller, "is current again")


async def compare(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Let two checkpoints answer the same prompts; a training worker does it."""
    one, other = arguments["one"].strip(), arguments["other"].strip()
    registry = services.workshop.registry
    try:
        named = [(await in_thread(registry.version, reference)).reference for reference in (one, other)]
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    order = Order(
        "compare",
        "",
        "",
        base=named[0],
        other=named[1],
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
    lines = [
        f"Workers: {num_workers}",
        *await in_thread(_loaded, services.workshop.jobs.redis),
        f"Conversations that wait: {waiting}",
        f"Training: {_num(jobs, State.TRAINING, State.JUDGING)} running, {_num(jobs, State.QUEUED)} queued, "
        f"{_num(jobs, State.CHECKING, State.PROPOSED)} not confirmed",
    ]
    return Response("\n".join(lines), is_private=True)


def _list(registry: Registry) -> str:
    chosen = registry.chosen()
    lines = []
    for name in registry.names()[:MAX_LISTED]:
        versions = registry.versions(name)
        current = next((version.version for version in versions if version.is_current), "nothing current")
        mark = "▸" if name == chosen else "•"
        lines.append(f"{mark} {name}: {current} ({len(versions)} version{'s' if len(versions) > 1 else ''})")
    return "\n".join(lines or ["No checkpoints yet."])


def _line(version: Version) -> str:
    said = [f"{'▸' if version.is_current else '•'} {version.version}"]
    if version.lineage.base:
        said.append(f"from {version.lineage.base}")
    if version.lineage.by:
        said.append(f"by {version.lineage.by}")
    if version.lineage.is_refused:
        said.append(f"refused: {'; '.join(version.reasons)}")
    elif version.lineage.forced_by:
        said.append(f"by force of {version.lineage.forced_by}")
    return ", ".join(said)


def _loaded(client: redis.Redis) -> list[str]:
    """Say what each worker has in memory, and what it failed to load."""
    lines = [
        f"• {worker}: {model.reference or model.name} ({model.digest}) for {_served(model)}"
        for worker, models in loaded_models(client).items()
        for model in models
    ]
    return lines + [
        f"• {error.worker} could not load {error.reference}: {error.reason}" for error in load_errors(client)
    ]


def _served(model: LoadedState) -> str:
    names = ["everybody" if name == "" else name for name in model.serves]
    return ", ".join(names) or "nobody now"


async def _changed(change: Callable[..., Version], reference: str, caller: Caller, how: str) -> Response:
    """Change what is served, and say what it is now."""
    try:
        version = await in_thread(change, reference.strip(), by=caller.user)
    except PersonabotError as error:
        return Response(str(error), is_private=True)
    log.info("checkpoint changed", version=version.reference, by=caller.user, change=change.__name__)
    undo = (Button("Undo", "model rollback", version.name),) if change.__name__ == "promoted" else ()
    return Response(f"{version.reference} {how}.", buttons=(undo,) if undo else (), is_private=True)


def _num(jobs: Sequence[Job], *states: State) -> int:
    return sum(job.state in states for job in jobs)


_NAME = Option("name", "a checkpoint's name", suggest=suggest_checkpoints)

MODEL_COMMANDS: Final[tuple[Command, ...]] = (
    admin_command("model list", "which checkpoints there are", list_models),
    admin_command("model show", "the versions of a checkpoint", show, (_NAME,)),
    admin_command("model use", "serve another checkpoint", use, (_NAME,)),
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
