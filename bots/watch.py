"""Keeps people informed of jobs: one message for each, edited as the job goes on, and the figures at its end.

What is told comes from the job's record, and which message shows it and what was told is on record as well, so that an
adapter that was restarted goes on with the same message. Looking at a pace that the platform stands makes every edit a
coalesced one.
"""

from __future__ import annotations

import asyncio
import time

import redis
import structlog

from bots.delivery import Moved, NoRoom, NotEditable, Platform, TryLater, Undeliverable
from bots.failures import Failure, failures_after
from bots.job_card import Rows, card, final_report
from bots.retrain import num_ahead
from bots.services import Services, in_thread
from bots.speech import Speech
from bots.split import split
from personas.conversation import Conversation
from worker.queue.job import Job, State
from worker.queue.jobs import Jobs

log = structlog.get_logger(__name__)


class Watch:
    """The jobs that one platform's people were promised to hear of."""

    def __init__(self, services: Services, platform: Platform, name: str, *, every_s: float) -> None:
        self._services = services
        self._jobs: Jobs = services.workshop.jobs
        self._platform = platform
        self._name = name
        self._every_s = every_s
        self._told: dict[str, tuple[State, str, Rows]] = {}
        self._began_at = time.time()

    async def run(self) -> None:
        """Look and tell, for ever."""
        while True:
            try:
                await self.look()
            except redis.RedisError as error:
                log.warning("jobs not readable, trying again", error=repr(error))
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Tell what has changed since the last look."""
        for job_id in sorted(await in_thread(self._jobs.shown, self._name)):
            job = await in_thread(self._jobs.get, job_id)
            if job is None or job.order.where is None:
                await in_thread(self._jobs.stop_showing, self._name, job_id)
                continue
            await self._tell_safely(job, job.order.where)
        await self._tell_of_failures()

    async def _tell_of_failures(self) -> None:
        """Say where a model was ordered that a worker could not load it; one that a platform is too busy for, later."""
        heard_until = await in_thread(self._jobs.heard_until, self._name, self._began_at)
        for failure in await in_thread(failures_after, self._services.workshop, heard_until):
            if failure.where and failure.where.platform == self._name:
                try:
                    await self._tell_of_failure(failure, failure.where)
                except TryLater:
                    return
            await in_thread(self._jobs.set_heard_until, self._name, failure.at)

    async def _tell_of_failure(self, failure: Failure, where: Conversation) -> None:
        try:
            await self._platform.send(where, failure.text, nonce=f"load-{failure.at:.6f}")
        except Moved as moved:
            await self._tell_of_failure(failure, moved.conversation)
        except Undeliverable as error:
            log.warning("nobody to tell of a model that was not loaded", error=str(error))

    async def _tell_safely(self, job: Job, where: Conversation) -> None:
        try:
            await self._tell(job, where)
        except NoRoom:
            log.debug("telling of a job when replies leave room", job=job.id)
        except TryLater as error:
            log.info("telling of a job later", job=job.id, error=str(error))
        except Moved as moved:
            await self._tell_safely(job, moved.conversation)
        except Undeliverable as error:
            log.warning("nobody to tell of a job", job=job.id, error=str(error))
            await in_thread(self._jobs.stop_showing, self._name, job.id)

    async def _tell(self, job: Job, where: Conversation) -> None:
        text, buttons = card(job, await in_thread(num_ahead, self._services.workshop, job))
        told = self._told.get(job.id)
        if told != (job.state, text, buttons):
            await self._show(job, where, text, buttons, is_progress=told is not None and told[0] is job.state)
            self._told[job.id] = (job.state, text, buttons)
        if job.state.is_over:
            await self._report(job, where)
            await in_thread(self._jobs.stop_showing, self._name, job.id)
            del self._told[job.id]

    async def _show(self, job: Job, where: Conversation, text: str, buttons: Rows, *, is_progress: bool) -> None:
        """Send the job's message, or edit it where there is one; one that is gone is sent anew."""
        [text, *_] = split(self._platform.worded(where, Speech("", text)), self._platform.max_length)
        if job.message_id:
            try:
                await self._platform.edit(where, job.message_id, text, buttons=buttons, is_progress=is_progress)
                return
            except NotEditable:
                log.info("a job's message is gone, sending it anew", job=job.id)
        nonce = f"job-{job.id}-{job.message_id[-8:]}"
        message_id = await self._platform.send(where, text, nonce=nonce, buttons=buttons)
        await in_thread(self._jobs.set_message, job.id, message_id)

    async def _report(self, job: Job, where: Conversation) -> None:
        """Send the picture and the figures of a job that came to a model."""
        if job.state in (State.PROMOTED, State.REFUSED) and (png := await in_thread(self._jobs.curve, job.id)):
            await self._platform.send_picture(where, png, f"The loss of {job.order.name}.", nonce=f"pic-{job.id}")
        report = final_report(job)
        parts = split(self._platform.worded(where, Speech("", report)), self._platform.max_length) if report else []
        for index, part in enumerate(parts):
            await self._platform.send(where, part, nonce=f"end-{job.id}-{index}")
