"""From the outbox to the platform: split, sent in order, acknowledged; nothing lost, nothing sent twice.

Owns the order within a conversation and what happens when a send fails. How a platform sends is its `Platform`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, TypeVar

import redis
import structlog

from bots.command import Button, Response
from bots.lanes import Lanes
from bots.services import Services, in_thread
from bots.speech import Speech
from bots.split import split
from bots.typing import Typing
from personas.conversation import Conversation
from worker.queue.message import EntryKind, OutboxEntry
from worker.queue.outbox import Outbox

log = structlog.get_logger(__name__)

T = TypeVar("T")
Rows = tuple[tuple[Button, ...], ...]

FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0
MAX_NOTICE_ATTEMPTS: Final = 3
GRACE_S: Final = 3.0
_ID_SEPARATOR: Final = ","  # a reply in several messages is remembered with all their ids


class Undeliverable(Exception):
    """The platform will never take this: blocked, removed, or gone."""


class TryLater(Exception):
    """The platform did not take this now; `after_s` if it said when it will."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class NoRoom(TryLater):
    """What may as well come later would have taken the room that replies need."""


class Moved(Exception):
    """The conversation has another address now."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(str(conversation))
        self.conversation = conversation


class NotEditable(Exception):
    """The message that was to be edited is gone or too old."""


class Platform(Protocol):
    """How one platform words, sends and edits. The calls raise the exceptions above and no others on purpose."""

    max_length: int

    def worded(self, conversation: Conversation, speech: Speech) -> str:
        """Return the speech as text of this platform, signed where needed."""
        ...

    async def send(
        self, conversation: Conversation, text: str, *, nonce: str = "", reply_to: str = "", buttons: Rows = ()
    ) -> str:
        """Send one message and return its id."""
        ...

    async def edit(
        self, conversation: Conversation, message_id: str, text: str, *, buttons: Rows = (), is_progress: bool = False
    ) -> None:
        """Replace the text and the buttons of a message; raises `NoRoom` where `is_progress` and replies come first."""
        ...

    async def send_picture(self, conversation: Conversation, png: bytes, caption: str, *, nonce: str = "") -> str:
        """Send a picture with a few words and return the message's id."""
        ...

    async def delete(self, conversation: Conversation, message_id: str) -> None:
        """Remove a message."""
        ...


class Delivery:
    """Delivers what is in the outbox, and what commands answer, in order within each conversation."""

    def __init__(self, services: Services, outbox: Outbox, platform: Platform, typing: Typing) -> None:
        self._services = services
        self._outbox = outbox
        self._platform = platform
        self._typing = typing
        self._lanes = Lanes()

    async def run(self) -> None:
        """Deliver for ever: what was pending before the last restart comes first."""
        async for entry in self._outbox.entries():
            self._lanes.run(str(entry.conversation), partial(self._deliver_safely, entry))

    def say(self, conversation: Conversation, response: Response, *, reply_to: str = "") -> asyncio.Task[None]:
        """Send what a command or a notice says, behind what the conversation is being sent already."""
        return self._lanes.run(str(conversation), partial(self._say, conversation, response, reply_to))

    async def close(self) -> None:
        """Stop; what was not acknowledged is delivered after the next start.

        A send under way may finish: cut off, it might be there already and would come again.
        """
        await self._lanes.close(grace_s=GRACE_S)

    def texts(self, conversation: Conversation, response: Response) -> list[str]:
        """Return the response as the messages to send."""
        speeches = [Speech("", response.text), response.speech or Speech("", "")]
        said = [self._platform.worded(conversation, speech) for speech in speeches if speech.text]
        return split("\n\n".join(said), self._platform.max_length)

    async def _say(self, conversation: Conversation, response: Response, reply_to: str) -> None:
        parts = self.texts(conversation, response)
        for index, text in enumerate(parts):
            send = partial(
                self._platform.send,
                text=text,
                reply_to=reply_to if index == 0 else "",
                buttons=response.buttons if index == len(parts) - 1 else (),
            )
            try:
                await self._sent(conversation, send, max_attempts=MAX_NOTICE_ATTEMPTS)
            except (Undeliverable, TryLater) as error:
                log.warning("notice not delivered", conversation=str(conversation), error=str(error))
                return

    async def _deliver_safely(self, entry: OutboxEntry) -> None:
        where = str(entry.conversation)
        try:
            await self._deliver(entry)
        except Undeliverable as error:
            log.warning("reply given up", conversation=where, entry=entry.id, error=str(error))
        except Exception:
            log.exception("reply left for the next start", conversation=where, entry=entry.id)
            return
        await _until_redis(partial(self._outbox.ack, entry))
        await self._settle_typing(entry.conversation)

    async def _deliver(self, entry: OutboxEntry) -> None:
        speech = Speech(entry.persona if entry.kind != EntryKind.NOTICE else "", entry.text)
        parts = split(self._platform.worded(entry.conversation, speech), self._platform.max_length)
        old_ids = entry.replaces.split(_ID_SEPARATOR) if entry.replaces else []
        num_done = await _until_redis(partial(self._outbox.parts_done, entry))
        ids = []
        for index in range(num_done, len(parts)):
            old_id = old_ids[index] if index < len(old_ids) else ""
            ids.append(await self._part(entry, parts[index], index, old_id))
            await _until_redis(partial(self._outbox.mark_part, entry, index + 1))
        for leftover in old_ids[len(parts) :]:
            await self._removed(entry.conversation, leftover)
        if entry.reply_id and ids:
            await self._remember(entry, ids)
        log.info("delivered", conversation=str(entry.conversation), entry=entry.id, num_parts=len(parts))

    async def _part(self, entry: OutboxEntry, text: str, index: int, old_id: str) -> str:
        if old_id:
            try:
                edit = partial(self._platform.edit, message_id=old_id, text=text)
                await self._sent(entry.conversation, edit)
            except (NotEditable, Undeliverable):
                log.info("old reply not editable, sending anew", conversation=str(entry.conversation))
            else:
                return old_id
        send = partial(
            self._platform.send,
            text=text,
            nonce=f"{entry.id}.{index}" if index else entry.id,
            reply_to=entry.reply_to if index == 0 else "",
        )
        return await self._sent(entry.conversation, send)

    async def _sent(
        self, conversation: Conversation, send: Callable[[Conversation], Awaitable[T]], max_attempts: int | None = None
    ) -> T:
        """Send until the platform takes it or will never take it, following the conversation where it moved."""
        pause_s = FIRST_PAUSE_S
        num_attempts = 0
        while True:
            num_attempts += 1
            try:
                return await send(conversation)
            except Moved as moved:
                conversation = moved.conversation
            except TryLater as error:
                if num_attempts == max_attempts:
                    raise
                log.info("sending later", conversation=str(conversation), error=str(error), after_s=error.after_s)
                await asyncio.sleep(pause_s if error.after_s is None else error.after_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)

    async def _removed(self, conversation: Conversation, message_id: str) -> None:
        try:
            await self._platform.delete(conversation, message_id)
        except (NotEditable, Undeliverable, TryLater, Moved) as error:
            log.info("old part not removed", conversation=str(conversation), error=str(error))

    async def _remember(self, entry: OutboxEntry, ids: list[str]) -> None:
        """Note the messages' ids with the turn, so that a later `/regenerate` can replace them."""
        note = partial(
            in_thread,
            self._services.store.set_message_id,
            entry.conversation,
            entry.reply_id,
            _ID_SEPARATOR.join(ids),
        )
        await _until_redis(note)

    async def _settle_typing(self, conversation: Conversation) -> None:
        """Stop typing, unless the next message of the conversation is being answered already."""
        if await self._services.is_being_answered(conversation):
            self._typing.start(conversation)
        else:
            self._typing.stop(conversation)


async def _until_redis(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until Redis answers: what was sent must be written down before anything else is sent."""
    pause_s = 0.1
    while True:
        try:
            return await call()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("redis is away, waiting", error=repr(error))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)
