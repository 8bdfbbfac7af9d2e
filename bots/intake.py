"""A message on its way in: from what a platform heard to the mailbox, and what the person is told meanwhile.

Owns the words for "too busy" and "not reachable". Knows no platform; `addressed` has decided that the bot is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import redis
import structlog

from bots.command import Response
from bots.delivery import Delivery
from bots.services import Services
from bots.typing import Typing
from personas.conversation import Conversation, Role, Turn
from worker.queue.errors import QueueUnavailable
from worker.queue.keys import WORKERS
from worker.queue.message import Message

log = structlog.get_logger(__name__)

# As many conversations ahead mean a wait that would look like silence.
NOTICE_FROM_POSITION: Final = 100
NO_TEXT: Final = "I can only read text. Write me a few words."
NOT_TAKEN: Final = "I could not take that message: my memory is out of reach. Please say it again in a minute."
NOBODY_THERE: Final = "Nobody is there to answer at the moment. I keep your message, but please try again later."
BUSY: Final = "I am very busy: about {position} conversations are ahead of this one. I answer as soon as I can."


@dataclass(frozen=True, slots=True)
class Heard:
    """A message for the bot, mention stripped. In a group the reply refers to it."""

    conversation: Conversation
    text: str
    author_id: str
    author_name: str
    message_id: str
    is_group: bool
    server: str = ""


class Intake:
    """Takes messages for one adapter."""

    def __init__(self, services: Services, typing: Typing) -> None:
        self._services = services
        self._typing = typing

    async def accept(self, heard: Heard) -> str:
        """Put the message into the mailbox; return what to tell the person at once, "" for nothing."""
        if not heard.text.strip():
            return NO_TEXT
        self._typing.start(heard.conversation)
        try:
            submitted = await self._services.publisher.submit(self._message(heard))
        except QueueUnavailable as error:
            self._typing.stop(heard.conversation)
            log.warning("message not taken", conversation=str(heard.conversation), error=str(error))
            return NOT_TAKEN
        if submitted.is_duplicate:
            log.info("message seen before", conversation=str(heard.conversation), message_id=heard.message_id)
            if not await self._services.is_being_answered(heard.conversation):
                self._typing.stop(heard.conversation)
        elif submitted.position >= NOTICE_FROM_POSITION:
            return BUSY.format(position=submitted.position)
        return ""

    def _message(self, heard: Heard) -> Message:
        return Message(
            heard.conversation,
            Turn(
                Role.USER,
                heard.text.strip(),
                name=heard.author_name,
                author_id=heard.author_id,
                message_id=heard.message_id,
            ),
            self._services.deadline(),
            reply_to=heard.message_id if heard.is_group else "",
            is_group=heard.is_group,
            server=heard.server,
        )


async def notice_of_silence(services: Services, delivery: Delivery, conversation: Conversation) -> None:
    """Tell a conversation whose reply is overdue that nobody is there to answer; a living worker says so itself."""
    try:
        is_anybody_there = await services.redis.zcard(WORKERS) > 0
    except redis.RedisError:
        is_anybody_there = False
    if not is_anybody_there:
        delivery.say(conversation, Response(NOBODY_THERE))
