"""Models that a worker could not load, and who is to hear of it: whoever had that name served last.

Synchronous, like the workshop; how it is told is the affair of who asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from bots.workshop import Workshop
from personas.conversation import Conversation
from worker.queue.job import State
from worker.queue.loaded import MAX_ERRORS, load_errors, ordered_in


@dataclass(frozen=True, slots=True)
class Failure:
    """What to tell at `where`, of something that happened `at` (s since 1970); None where nobody ordered it."""

    where: Conversation | None
    text: str
    at: float


def failures_after(workshop: Workshop, since: float) -> list[Failure]:
    """Return what could not be loaded after `since`, oldest first."""
    errors = [error for error in reversed(load_errors(workshop.jobs.redis, MAX_ERRORS)) if error.at > since]
    if not errors:
        return []
    # A job that promotes says so only a moment later.
    judging = {job.order.name: job.order.where for job in workshop.jobs.open() if job.state is State.JUDGING}
    chosen = workshop.registry.chosen() or ""
    failures = []
    for error in errors:
        name = (error.reference or chosen).partition("@")[0]
        text = f"{error.worker} could not load {name}: {error.reason.rstrip('.')}. What spoke before goes on."
        failures.append(Failure(judging.get(name) or ordered_in(workshop.jobs.redis, name), text, error.at))
    return failures
