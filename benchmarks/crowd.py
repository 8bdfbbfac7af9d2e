"""People who talk to the bot, and how they were answered; by which way their words go, a `Way` knows.

A reply's time counts from when its message was due. Who waits for a reply says nothing more until it has come.
Knows no model and no platform.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import redis.asyncio

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
NUM_TURNS = 6  # then a person goes on in another room, so that histories are as long at the end as at the start


@dataclass(frozen=True)
class Heard:
    """Something the bot said in a room: a reply, or a notice in place of one."""

    room: str
    is_reply: bool = True


class Way(Protocol):
    """How people's words reach the bot, and how they hear it. A room is there as soon as somebody speaks in it."""

    async def speak(self, room: str, text: str) -> None:
        """Say something in a room."""
        ...

    def heard(self) -> AsyncIterator[Heard]:
        """Yield, for ever, what the bot says in the rooms."""
        ...


class QueueWay:
    """Straight into the queue and out of it, as an adapter passes words on."""

    def __init__(self, publisher: Publisher, client: redis.asyncio.Redis, deadline_s: float) -> None:
        self._publisher = publisher
        self._outbox = Outbox(client, PLATFORM)
        self._deadline_s = deadline_s

    async def speak(self, room: str, text: str) -> None:
        """See `Way`."""
        turn = Turn(Role.USER, text, name="Ann", author_id="ann")
        message = Message(Conversation(PLATFORM, room), turn, deadline=time.time() + self._deadline_s)
        await self._publisher.submit(message)

    async def heard(self) -> AsyncIterator[Heard]:
        """See `Way`."""
        async for entry in self._outbox.entries():
            await self._outbox.ack(entry)
            yield Heard(entry.conversation.place, entry.kind != EntryKind.NOTICE)


@contextlib.asynccontextmanager
async def through_queue(url: str, deadline_s: float) -> AsyncIterator[QueueWay]:
    """Open the way through the queue at `url`; what is not answered after `deadline_s` is answered with a notice."""
    async with connect_async(url) as client:
        with Publisher(url) as publisher:
            yield QueueWay(publisher, client, deadline_s)


@dataclass
class Said:
    """A message and what came of it: `due` by `time.monotonic`, `took_s` None as long as no reply has come."""

    due: float
    took_s: float | None = None
    person: int = 0
    room: str = ""
    text: str = ""


@dataclass
class Crowd:
    """People who talk, each on their own, from `arrive` to `leave`.

    Something is due from each every `every_s`, whether or not others wait (an open loop); or, where nobody
    `catches_up`, so long after the last reply, so that a slow machine is asked less. `said`: all their messages,
    answered or not. `num_surplus`: replies that came to what was answered already.
    """

    way: Way
    num_people: int
    every_s: float
    catches_up: bool = True
    said: list[Said] = field(default_factory=list)
    num_surplus: int = 0
    _asked: dict[str, tuple[Said, asyncio.Event]] = field(default_factory=dict)
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _replied: asyncio.Condition = field(default_factory=asyncio.Condition)
    _talks: list[asyncio.Task[None]] = field(default_factory=list)
    _listening: asyncio.Task[None] | None = None

    @property
    def num_dropped(self) -> int:
        """How many messages have no reply."""
        return sum(said.took_s is None for said in self.said)

    def arrive(self) -> None:
        """Begin to talk, the people evenly spread over `every_s`."""
        started = time.monotonic()
        starts = [started + self.every_s * index / self.num_people for index in range(self.num_people)]
        self._listening = asyncio.create_task(self._listen())
        self._talks = [asyncio.create_task(self._talk(index, at)) for index, at in enumerate(starts)]

    async def all_answered(self) -> None:
        """Wait until everybody has been answered something said from now on."""
        start = len(self.said)

        def answered() -> set[int]:
            return {said.person for said in self.said[start:] if said.took_s is not None}

        async with self._replied:
            await self._replied.wait_for(lambda: len(answered()) == self.num_people)

    async def leave(self, patience_s: float) -> None:
        """Say nothing more, hear for so long what is still to come, and go."""
        assert self._listening is not None
        self._is_over.set()
        await asyncio.wait(self._talks, timeout=patience_s)
        ended = [task for task in (*self._talks, self._listening) if task.done()]
        for task in (*self._talks, self._listening):
            task.cancel()
        await asyncio.gather(*self._talks, self._listening, return_exceptions=True)
        for task in ended:
            task.result()  # whoever could not speak, or hear, says why

    async def _talk(self, person: int, due: float) -> None:
        number = person % NUM_TURNS
        while not await self._waited_until(due):
            said = Said(due, None, person, f"{person}-{number // NUM_TURNS}", TEXTS[(person + number) % len(TEXTS)])
            heard = asyncio.Event()
            self.said.append(said)
            self._asked[said.room] = said, heard
            await self.way.speak(said.room, said.text)
            await heard.wait()
            due, number = (due if self.catches_up else time.monotonic()) + self.every_s, number + 1

    async def _waited_until(self, due: float) -> bool:
        """Wait; return whether it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(due - time.monotonic(), 0)):
                await self._is_over.wait()
        return self._is_over.is_set()

    async def _listen(self) -> None:
        """Note what comes. A notice instead of a reply leaves what was said unanswered."""
        async for each in self.way.heard():
            said, heard = self._asked[each.room]
            if not each.is_reply:
                heard.set()
            elif said.took_s is not None:
                self.num_surplus += 1
            else:
                said.took_s = time.monotonic() - said.due
                heard.set()
                async with self._replied:
                    self._replied.notify_all()
