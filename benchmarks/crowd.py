"""People who talk to the bot through the queue, as an adapter passes it on, and how they were answered.

An open loop: everybody says something at fixed times whether or not others wait, and a reply's time counts from when
its message was due. Knows no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from personas.conversation import Conversation, Role, Turn
from worker.queue.connection import connect_async
from worker.queue.message import EntryKind, Message
from worker.queue.outbox import Outbox
from worker.queue.publish import Publisher

TEXTS = (
    "hello, how are you today?",
    "what is your name?",
    "tell me something about yourself.",
    "what do you do all day?",
    "do you like animals?",
    "where do you live?",
)
PLATFORM = "benchmark"
NUM_TURNS = 6  # then a conversation begins anew, so that histories are as long at the end as at the start


@dataclass
class Said:
    """A message and what came of it: `due` by `time.monotonic`, `took_s` None as long as nothing has come."""

    due: float
    took_s: float | None = None
    model: str = ""


@dataclass
class Crowd:
    """People who talk, each on their own, until `leave`. What they said, answered or not, is in `said`."""

    url: str
    num_people: int
    every_s: float
    deadline_s: float
    said: list[Said] = field(default_factory=list)
    _asked: dict[Conversation, tuple[Said, asyncio.Event]] = field(default_factory=dict)
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def arrive(self, publisher: Publisher) -> None:
        """Begin to talk, the people evenly spread over `every_s`."""
        started = time.monotonic()
        starts = [started + self.every_s * index / self.num_people for index in range(self.num_people)]
        self._tasks = [asyncio.create_task(self._talk(publisher, index, at)) for index, at in enumerate(starts)]
        self._tasks.append(asyncio.create_task(self._listen()))

    async def leave(self) -> None:
        """Say nothing more, hear what is still to come, and go."""
        self._is_over.set()
        *talks, listening = self._tasks
        await asyncio.wait(talks, timeout=self.deadline_s)
        for task in (*talks, listening):
            task.cancel()
        await asyncio.gather(*talks, listening, return_exceptions=True)

    async def _talk(self, publisher: Publisher, index: int, due: float) -> None:
        number = index % NUM_TURNS
        while not await self._waited_until(due):
            room = Conversation(PLATFORM, f"{index}-{number // NUM_TURNS}")
            said, heard = Said(due), asyncio.Event()
            self.said.append(said)
            self._asked[room] = said, heard
            turn = Turn(Role.USER, TEXTS[(index + number) % len(TEXTS)], name="Ann", author_id="ann")
            await publisher.submit(Message(room, turn, deadline=time.time() + self.deadline_s))
            await heard.wait()
            due, number = due + self.every_s, number + 1

    async def _waited_until(self, due: float) -> bool:
        """Wait; return whether it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(due - time.monotonic(), 0)):
                await self._is_over.wait()
        return self._is_over.is_set()

    async def _listen(self) -> None:
        """Deliver as an adapter does. A notice instead of a reply leaves what was said unanswered."""
        outbox = Outbox(connect_async(self.url), PLATFORM)
        async for entry in outbox.entries():
            await outbox.ack(entry)
            said, heard = self._asked[entry.conversation]
            if entry.kind != EntryKind.NOTICE:
                said.took_s, said.model = time.monotonic() - said.due, entry.model
            heard.set()


@dataclass(frozen=True)
class Phase:
    """A stretch of time, by `time.monotonic`."""

    name: str
    begins: float
    ends: float

    def summary(self, said: Sequence[Said]) -> dict[str, Any]:
        """Return how what was due in it was answered, times in milliseconds."""
        own = [each for each in said if self.begins <= each.due < self.ends]
        took = sorted(each.took_s * 1000 for each in own if each.took_s is not None)
        found = {"seconds": round(self.ends - self.begins, 1), "said": len(own), "dropped": len(own) - len(took)}
        if not took:
            return found
        return found | {
            "p50_ms": round(statistics.median(took)),
            "p95_ms": round(took[min(len(took) - 1, int(len(took) * 0.95))]),
            "slowest_ms": round(took[-1]),
        }
