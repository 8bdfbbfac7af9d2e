"""What an adapter works with: the store, the catalogue and the queue, as its event loop may use them.

The store is synchronous, so that every call to it goes through a thread; no model and no platform is known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import redis
import redis.asyncio

from bots.workshop import Workshop
from personas.catalogue import Catalogue, UnknownPersona, load_catalogue
from personas.conversation import Conversation, Role, Turn
from personas.persona import Persona
from personas.settings import Settings
from personas.store import ConversationStore
from worker.queue.connection import connect, connect_async
from worker.queue.keys import claim_key, seen_key
from worker.queue.mailbox import SEEN_S
from worker.queue.publish import ATTEMPT_S, Publisher

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything behind the adapter. `redis` is for the event loop, the store and the workshop for threads.

    `admins` are the people who may retrain and switch models, each as platform:id.
    """

    store: ConversationStore
    catalogue: Catalogue
    publisher: Publisher
    redis: redis.asyncio.Redis
    workshop: Workshop
    admins: Set[str] = frozenset()
    default_persona: str = ""
    reply_deadline_s: float = 120.0

    @classmethod
    def open(cls, settings: Settings, url: str) -> Services:
        """Connect to the Redis at `url`; the publisher's thread runs from here on."""
        return cls(
            store=ConversationStore(connect(url, timeout_s=ATTEMPT_S, num_retries=1)),
            catalogue=load_catalogue(settings.personas_dir),
            publisher=Publisher(url).start(),
            redis=connect_async(url),
            workshop=Workshop.open(settings, url),
            admins=settings.admin_ids,
            default_persona=settings.default_persona,
            reply_deadline_s=settings.reply_deadline_s,
        )

    async def close(self) -> None:
        """Publish what waits and let go of the connections."""
        await asyncio.to_thread(self.publisher.close)
        await self.redis.aclose()

    async def persona_of(self, conversation: Conversation) -> Persona:
        """Return who speaks in the conversation; a persona that has left the catalogue gives way to the default."""
        chosen = (await asyncio.to_thread(self.store.settings, conversation)).persona
        for name in (chosen, self.default_persona):
            try:
                if name:
                    return self.catalogue.get(name)
            except UnknownPersona:
                continue
        return self.catalogue.get(self.catalogue.names()[0])

    async def is_being_answered(self, conversation: Conversation) -> bool:
        """Say whether a worker holds the conversation, or will; an unreachable Redis counts as no."""
        try:
            return bool(await self.redis.exists(claim_key(conversation)))
        except redis.RedisError:
            return False

    async def is_first_time(self, conversation: Conversation, call_id: str) -> bool:
        """Say whether a command's call is new, and remember it for a day; raises RedisError."""
        return bool(await self.redis.set(seen_key(conversation, call_id), "command", nx=True, ex=SEEN_S))

    def deadline(self) -> float:
        """Return the Unix time after which a message accepted now is answered with a notice."""
        return time.time() + self.reply_deadline_s


def greeting_turn(persona: Persona) -> Turn | None:
    """Return the persona's greeting as the first turn of a history."""
    return Turn(Role.BOT, persona.greeting, name=persona.name) if persona.greeting else None


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call something that waits for a socket without holding up the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)
