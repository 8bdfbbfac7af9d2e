"""Administrators' commands at the terminal of `personabot up`: whoever sits there owns the machine.

Carries the commands of `bots` to an event loop in a thread of its own, and says how jobs get on, and which model that
was ordered here could not be loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import redis

from bots.command import Attachment, Caller, Response
from bots.commands import run
from bots.failures import failures_after
from bots.job_card import card, final_report, progress_line
from bots.services import Services
from bots.typed import read_command
from bots.workshop import UnfitFile
from personabot.queue_partner import CONVERSATION
from personas.settings import Settings
from worker.queue.job import CURVE_FILE, FOLDERS, Job, State

OWNER: Final = Caller(CONVERSATION, "owner", "the terminal", is_moderator=True)
LOOK_EVERY_S: Final = 1.0


class AdminConsole:
    """Takes command lines and returns what they answer; `note` is told of what happens meanwhile. A context manager."""

    def __init__(self, settings: Settings, url: str, note: Callable[[str], None]) -> None:
        opened = Services.open(settings, url)
        self._services = replace(opened, admins=frozenset({OWNER.user}))
        self._note = note
        self._folder = settings.data_dir / FOLDERS
        self._told: dict[str, tuple[str, int]] = {}
        self._heard_until = time.time()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="console", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.cancel()
        asyncio.run_coroutine_threadsafe(self._services.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __call__(self, line: str) -> str:
        """Carry out a command such as "retrain list"."""
        name, _, rest = line.strip().partition(" ")
        command, arguments = read_command(name, rest)
        if command is None:
            return f"There is no command /{name}."
        caller = replace(OWNER, attachment=_file(arguments.pop("file", "")))
        answer = run(self._services, command, caller, arguments)
        return _text(asyncio.run_coroutine_threadsafe(answer, self._loop).result())

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(redis.RedisError):  # `up` says what happens to the server
                await self._look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        workshop = self._services.workshop
        for job_id in await asyncio.to_thread(workshop.jobs.shown, CONVERSATION.platform):
            job = await asyncio.to_thread(workshop.jobs.get, job_id)
            if job is not None:
                self._tell(job)
            if job is None or job.state.is_over:
                await asyncio.to_thread(workshop.jobs.stop_showing, CONVERSATION.platform, job_id)
        for failure in await asyncio.to_thread(failures_after, workshop, self._heard_until):
            if failure.where == CONVERSATION:
                self._note(failure.text)
            self._heard_until = failure.at

    def _tell(self, job: Job) -> None:
        """Say how a job stands when its state has changed, and every ten percent of its training."""
        tenths = int(job.progress.share * 10) if job.state is State.TRAINING else 0
        before = self._told.get(job.id)
        if before == (job.state, tenths):
            return
        self._told[job.id] = (job.state, tenths)
        if before and before[0] == job.state:
            self._note(f"{job.order.name}: {progress_line(job.progress)}")
            return
        text, buttons = card(job)
        picture = self._folder / job.id / CURVE_FILE
        curve = f"The loss: {picture}" if job.state.is_over and picture.is_file() else ""
        self._note("\n".join(filter(None, (_text(Response(text, buttons=buttons)), final_report(job), curve))))


def _text(response: Response) -> str:
    """Return a response with its buttons as the commands that they give."""
    options = [f"  {button.label}: /{button.command} {button.argument}" for row in response.buttons for button in row]
    return "\n".join([response.text, *options])


def _file(path: str) -> Attachment | None:
    """Return a file of this machine as if it had been attached."""
    if not path:
        return None
    source = Path(path).expanduser()

    async def save(target: Path, max_bytes: int) -> None:
        if not source.is_file() or source.stat().st_size > max_bytes:
            raise UnfitFile(f"There is no file {source}, or it is larger than {max_bytes / 1e6:.0f} MB.")
        await asyncio.to_thread(shutil.copyfile, source, target)

    return Attachment(source.name, source.stat().st_size if source.is_file() else 0, save)
