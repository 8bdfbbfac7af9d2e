"""The terminal's adapter: a `Partner` that answers through the queue, as Discord and Telegram do.

One message at a time: submit, show the pieces of its reply as they come, wait for its outbox entry, acknowledge it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import redis

from personas.catalogue import Catalogue
from personas.conversation import Conversation, Role, Turn
from personas.errors import UnknownPersona
from personas.persona import GenerationSettings, Persona
from personas.store import ConversationStore
from worker.queue.connection import connect, connect_async
from worker.queue.mailbox import Mailbox
from worker.queue.message import EntryKind, Kind, Message, OutboxEntry
from worker.queue.outbox import Outbox
from worker.queue.pieces import Piece, Shown, watched
from worker.queue.publish import Publisher
from worker.queue.reply import Tell

CONVERSATION = Conversation("terminal", "local")


@dataclass(frozen=True, slots=True)
class QueueReply:
    """What came out of the outbox."""

    text: str
    seed: int | None
    model: str


class QueuePartner(contextlib.AbstractContextManager["QueuePartner"]):
    """One person at this machine's terminal; the conversation outlives the session."""

    def __init__(
        self,
        url: str,
        catalogue: Catalogue,
        *,
        default_persona: Persona,
        deadline_s: float,
    ) -> None:
        self._client: redis.Redis = connect(url)
        self._store = ConversationStore(self._client)
        self._mailbox = Mailbox(self._client)
        self._publisher = Publisher(url).start()
        self._reader = Reader(url)
        self._deadline_s = deadline_s
        self.on_late_reply: Callable[[OutboxEntry], None] = lambda entry: None
        self.persona = self._current_persona(catalogue, default_persona)

    @property
    def settings(self) -> GenerationSettings:
        """The sampling settings of this conversation."""
        return self._store.settings(CONVERSATION).generation

    @property
    def num_turns(self) -> int:
        """How much was said before this session."""
        return len([turn for turn in self._store.history(CONVERSATION) if turn.role is Role.USER])

    def is_worker_alive(self) -> bool:
        """Tell whether anybody would answer now; a worker that loads its model is not there yet."""
        return self._mailbox.num_workers() > 0

    def say(self, text: str, tell: Tell | None = None) -> QueueReply:
        """Answer one message."""
        return self._ask(text, Kind.SAY, tell)

    def regenerate(self, tell: Tell | None = None) -> QueueReply | None:
        """Answer the last message again; None where there is nothing to answer."""
        turns = self._store.history(CONVERSATION, limit=2)
        if [turn.role for turn in turns] != [Role.USER, Role.BOT]:
            return None
        return self._ask("", Kind.REGENERATE, tell)

    def reset(self) -> None:
        """Forget the conversation."""
        self._store.reset(CONVERSATION, self._greeting())

    def become(self, persona: Persona) -> None:
        """Let another persona take over, in a new conversation."""
        self.persona = persona
        self._store.set_persona(CONVERSATION, persona.name, self._greeting())

    def tune(self, settings: GenerationSettings) -> None:
        """Sample with `settings` from now on, also after a restart."""
        stored = self._store.settings(CONVERSATION)
        self._store.set_settings(CONVERSATION, stored.model_copy(update={"generation": settings}))

    def __exit__(self, *_: object) -> None:
        self._publisher.close()
        self._reader.close()
        self._client.close()

    def _current_persona(self, catalogue: Catalogue, default: Persona) -> Persona:
        name = self._store.settings(CONVERSATION).persona
        with contextlib.suppress(UnknownPersona):
            if name:
                return catalogue.get(name)
        self.persona = default
        self._store.set_persona(CONVERSATION, default.name, self._greeting())
        return default

    def _greeting(self) -> Turn | None:
        greeting = self.persona.greeting
        return Turn(Role.BOT, greeting, name=self.persona.name) if greeting else None

    def _ask(self, text: str, kind: Kind, tell: Tell | None) -> QueueReply:
        message_id = uuid.uuid4().hex
        turn = Turn(Role.USER, text, author_id="you", message_id=message_id)
        deadline = time.time() + self._deadline_s
        message = Message(
            CONVERSATION, turn, deadline=deadline, kind=kind, reply_to=message_id, is_watched=tell is not None
        )
        self._publisher.submit_later(message).result()
        shown = Shown(message_id)
        while True:
            heard = self._reader.next()
            if isinstance(heard, Piece):
                if tell and shown.goes_on_with(heard):
                    tell(heard.text)
                continue
            self._reader.ack(heard)
            if heard.reply_to == message_id or heard.kind == EntryKind.NOTICE:
                return QueueReply(heard.text, heard.seed, heard.model)
            self.on_late_reply(heard)


class Reader:
    """Reads the asyncio outbox and the pieces of replies, in a thread of its own for a caller that is no event loop."""

    def __init__(self, url: str) -> None:
        self._heard: queue.SimpleQueue[OutboxEntry | Piece] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._client = connect_async(url)
        self._outbox = Outbox(self._client, CONVERSATION.platform)
        self._task = self._loop.create_task(self._read())
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def next(self) -> OutboxEntry | Piece:
        """Wait for the next entry, or piece of one."""
        return self._heard.get()

    def ack(self, entry: OutboxEntry) -> None:
        """Acknowledge an entry."""
        asyncio.run_coroutine_threadsafe(self._outbox.ack(entry), self._loop).result()

    def close(self) -> None:
        """Stop reading."""
        while self._thread.is_alive():
            # More than once: a cancellation that meets a socket's timeout can get lost in it.
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(0.5)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    async def _read(self) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            async for entry in self._outbox.entries():
                self._heard.put(entry)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        async for piece in watched(self._client, CONVERSATION):
            self._heard.put(piece)
