"""Pieces of a reply on their way to a person who watches it come.

They are published and kept by nobody: who listens late, or loses the connection, misses pieces and never the reply,
which comes whole through the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Self

import redis
import redis.asyncio
import structlog

from personas.conversation import Conversation
from worker.queue import keys
from worker.queue.connection import connect
from worker.queue.message import Taken
from worker.queue.reply import Tell

log = structlog.get_logger(__name__)

PATIENCE_S: Final = 1.0  # for one look at the connection
PAUSE_S: Final = 1.0
TELL_S: Final = 0.5  # a Redis that hangs holds up a reply once, by so much


@dataclass(frozen=True, slots=True)
class Piece:
    """What the reply to message `reply_to` goes on with, as the worker that answers it under `fence` says it."""

    reply_to: str
    text: str
    fence: int

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Invert `to_json`; ValueError or TypeError where it is no piece."""
        return cls(**json.loads(line))


class Shown:
    """What is shown of the reply to one message while it comes: the pieces of one worker, until another begins it anew.

    That is one under a higher fence, after a worker that died or lost its claim. What was shown is void then, and no
    piece fits it any more; the slower of the two may still be telling. The reply itself takes the place of it all.
    """

    def __init__(self, reply_to: str) -> None:
        self._reply_to = reply_to
        self._fence: int | None = None
        self._is_void = False

    def goes_on_with(self, piece: Piece) -> bool:
        """Return whether `piece` is to be shown after those before it."""
        if piece.reply_to != self._reply_to:
            return False
        if self._fence is None:
            self._fence = piece.fence
        self._is_void |= piece.fence > self._fence
        return piece.fence == self._fence and not self._is_void


@contextlib.contextmanager
def telling(url: str) -> Iterator[Callable[[Taken], Tell | None]]:
    """Yield what tells the pieces of replies at `url`, over connections that give up sooner than the mailbox's."""
    with contextlib.closing(connect(url, timeout_s=TELL_S, num_retries=0)) as client:
        yield partial(_teller, client)


def _teller(client: redis.Redis, taken: Taken) -> Tell | None:
    """Return what publishes the pieces of the reply to `taken`; None where nobody watches it come."""
    asked = taken.messages[-1]
    if not asked.is_watched:
        return None
    channel = keys.pieces_channel(taken.conversation)
    is_reached = True

    def tell(text: str) -> None:
        nonlocal is_reached
        if is_reached:
            try:
                client.publish(channel, Piece(asked.reply_to, text, taken.fence).to_json())
            except redis.RedisError as error:
                is_reached = False  # else a Redis that is away would hold up the reply at every piece
                log.warning("pieces not told any more", conversation=str(taken.conversation), error=str(error))

    return tell


async def watched(client: redis.asyncio.Redis, conversation: Conversation) -> AsyncIterator[Piece]:
    """Yield the pieces of replies in `conversation` for ever, as long as Redis can be reached."""
    is_reached = True
    while True:
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(keys.pieces_channel(conversation))
                while True:
                    told = await pubsub.get_message(timeout=PATIENCE_S)
                    is_reached = True
                    if told and (piece := _piece(told["data"])):
                        yield piece
        except redis.RedisError as error:
            if is_reached:  # one line for each outage
                log.warning("pieces not heard for now", conversation=str(conversation), error=str(error))
            is_reached = False
            await asyncio.sleep(PAUSE_S)


def _piece(line: str) -> Piece | None:
    try:
        return Piece.from_json(line)
    except (ValueError, TypeError) as error:  # of a worker of another version
        log.warning("piece not understood", error=str(error))
        return None
