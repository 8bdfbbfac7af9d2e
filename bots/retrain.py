"""The commands about training: start, status, cancel, list. Administrators only; the work is a training worker's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bots.command import Attachment, Caller, Command, Option, Response, admin_command
from bots.job_card import card, final_report, line_of
from bots.persona_commands import suggest_personas
from bots.services import Services, in_thread
from bots.workshop import DATASETS, UnfitFile, Workshop
from personas.catalogue import UnknownPersona
from personas.registry import NAME
from worker.queue.job import RECIPES, Job, Order, State

DEFAULT_RECIPE: Final = "standard"
YES: Final = ("yes", "true", "1")


async def start(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Take an order; its dry run appears as a message with the button that starts it."""
    workshop, given = services.workshop, {name: value.strip() for name, value in arguments.items()}
    recipe = given.get("recipe") or DEFAULT_RECIPE
    if not NAME.fullmatch(given["name"]):
        return _no("A name has up to 64 letters, digits, '.', '_' and '-', a letter or digit first.")
    if recipe not in RECIPES:
        return _no(f"There is no recipe {recipe!r}. There are: {', '.join(RECIPES)}.")
    try:
        persona = services.catalogue.get(given["persona"]).name if given.get("persona") else ""
        data = await _data(workshop, given.get("data", ""), caller.attachment)
        if given.get("base") and not await in_thread(workshop.registry.has, given["base"]):
            return _no(f"There is no checkpoint {given['base']!r}. /model list shows what there is.")
    except (UnknownPersona, UnfitFile) as error:
        return _no(str(error))
    order = Order(
        given["name"],
        data,
        recipe,
        base=given.get("base", ""),
        persona=persona,
        speaker=given.get("speaker", "").strip('"“”„'),  # a form of Discord's needs no quotes
        by=caller.user,
        by_name=caller.author_name,
        conversation=str(caller.conversation),
        is_forced=given.get("force", "").casefold() in YES,
    )
    job = await in_thread(workshop.submit, order, caller.conversation.platform)
    return Response(
        f"Job {job.id}: reading the data. What I find appears here; nothing is trained before you confirm it.",
        is_private=True,
    )


async def confirm(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Queue a job whose dry run was shown."""
    workshop, job_id = services.workshop, arguments["job"].strip()
    if not await in_thread(workshop.jobs.confirm, job_id, caller.user):
        job = await in_thread(workshop.jobs.get, job_id)
        return _no("\n".join(["That job waits for no confirmation (any more).", *([line_of(job)] if job else [])]))
    await in_thread(workshop.wake)
    return await _shown(workshop, job_id)


async def cancel(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """End a job: at once if it waits, within a step if it runs."""
    workshop = services.workshop
    job = await _meant(workshop, arguments.get("job", ""))
    if job is None:
        return _no("There is no such job to cancel; /retrain list shows their ids.")
    if await in_thread(workshop.jobs.cancel, job.id, f"by {caller.author_name or caller.user}") is None:
        return _no("That job is over already.")
    return await _shown(workshop, job.id)


async def status(services: Services, _caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Show a job, or the one that is first in the queue."""
    workshop = services.workshop
    job = await _meant(workshop, arguments.get("job", ""))
    newest = [] if job or arguments.get("job") else await in_thread(workshop.jobs.newest, 1)
    job = job or next(iter(newest), None)
    return await _shown(workshop, job.id) if job else _no("There is no such job.")


async def list_jobs(services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Show the newest jobs and the data sets that lie ready."""
    jobs = await in_thread(services.workshop.jobs.newest)
    ready = await in_thread(services.workshop.datasets)
    lines = [line_of(job) for job in jobs] or ["No jobs yet."]
    lines.append(f"Data sets in {DATASETS}/: {', '.join(ready) or 'none'}")
    return Response("\n".join(lines), is_private=True)


async def show_help(_services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Say how to retrain, with what, and with what not."""
    lines = [
        "/retrain start name=NAME reads a data file (attached, or data=NAME of one that lies ready) and shows what "
        "it found; the button below that starts the training.",
        "Recipes: " + "; ".join(f"{name}: {about}" for name, about in RECIPES.items()),
        "base=CHECKPOINT trains that one further instead of what is served now. persona=NAME makes a voice that only "
        "this persona uses. force=yes promotes the result whatever the gate says; that is on record.",
        "The recipe voice and a persona's voice are two things: the one is a way of training, the other the checkpoint "
        "that the persona speaks with, whichever recipe made it.",
        "speaker=NAME says whose lines are learnt from a file in which people have names: a chat's export, a script. "
        'Names with spaces stand in quotes: speaker="Bo Li".',
        "The result is judged against the present model and serves the next message only if it is no worse; "
        "/model rollback takes it back.",
        POLICY,
    ]
    return Response("\n".join(lines), is_private=True)


def suggest_recipes(_services: Services, typed: str) -> list[str]:
    """Return the recipes whose names begin so."""
    return [name for name in RECIPES if name.startswith(typed.casefold())]


def suggest_datasets(services: Services, typed: str) -> list[str]:
    """Return the data sets whose names contain what was typed."""
    return [name for name in services.workshop.datasets() if typed.casefold() in name.casefold()]


def suggest_checkpoints(services: Services, typed: str) -> list[str]:
    """Return the checkpoints whose names contain what was typed."""
    return [name for name in services.workshop.registry.names() if typed.casefold() in name.casefold()]


async def _data(workshop: Workshop, name: str, attachment: Attachment | None) -> str:
    """Return the data file below the data folder, an attachment brought there first; raises `UnfitFile`."""
    if attachment is not None:
        path = await in_thread(workshop.upload_path, attachment.name, attachment.num_bytes)
        await attachment.save(path, workshop.max_upload_bytes)
    elif name in (ready := await in_thread(workshop.datasets)):
        path = workshop.data_dir / DATASETS / name
    else:
        there = f"In {DATASETS}/ there are: {', '.join(ready) or 'none'}."
        raise UnfitFile(f"There is no data set {name!r}. {there}" if name else f"Attach a data file. {there}")
    return str(Path(path).relative_to(workshop.data_dir))


async def _meant(workshop: Workshop, job_id: str) -> Job | None:
    """Return the job of that id, or without one the first that is not over."""
    if job_id.strip():
        return await in_thread(workshop.jobs.get, job_id.strip())
    waiting = await in_thread(workshop.jobs.open)
    return next((job for job in waiting if job.state in (State.TRAINING, State.JUDGING)), next(iter(waiting), None))


async def _shown(workshop: Workshop, job_id: str) -> Response:
    job = await in_thread(workshop.jobs.get, job_id)
    if job is None:
        return _no("There is no such job.")
    text, buttons = card(job, await in_thread(num_ahead, workshop, job))
    if told := final_report(job):
        text = f"{text}\n\n{told}"
    return Response(text, buttons=buttons, is_private=True, replaces=True)


def num_ahead(workshop: Workshop, job: Job) -> int:
    """Return how many confirmed jobs come before a queued one."""
    if job.state is not State.QUEUED:
        return 0
    before = [each.id for each in workshop.jobs.open() if each.state not in (State.CHECKING, State.PROPOSED)]
    return before.index(job.id) if job.id in before else 0


def _no(why: str) -> Response:
    return Response(why, is_private=True)


POLICY: Final = (
    "Training data are files that you supply and may use: nothing that was said to me becomes training data, since "
    "Discord's policy forbids that and people here did not agree to it."
)

_JOB = Option("job", "the job's id", is_required=False)

RETRAIN_COMMANDS: Final[tuple[Command, ...]] = (
    admin_command(
        "retrain start",
        "train a new version on a data file",
        start,
        (
            Option("name", "what the new checkpoint is called"),
            Option("file", "a data file", is_required=False, is_file=True),
            Option("data", "a data set that lies ready", is_required=False, suggest=suggest_datasets),
            Option("recipe", "quick, standard or voice", is_required=False, suggest=suggest_recipes),
            Option("base", "the checkpoint to train further", is_required=False, suggest=suggest_checkpoints),
            Option("persona", "whose own voice it becomes", is_required=False, suggest=suggest_personas),
            Option("force", "yes: promote it whatever the gate says", is_required=False),
            Option("speaker", "whose lines are learnt, where people in the file have names", is_required=False),
        ),
    ),
    admin_command(
        "retrain confirm",
        "start what a dry run has shown",
        confirm,
        (Option("job", "the job's id"),),
    ),
    admin_command("retrain status", "how far it is", status, (_JOB,)),
    admin_command("retrain cancel", "end a training", cancel, (_JOB,)),
    admin_command("retrain list", "jobs and data sets", list_jobs),
    admin_command("retrain help", "how to retrain, and with what", show_help),
)
