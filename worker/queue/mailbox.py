"""The mailbox: waiting messages, who holds a conversation, and what a finished reply sets in motion.

Owns the order within a conversation and the exactly-once of replies: every method is one atomic step in Redis, and
every step after `submit` proves with a fencing number that its caller still holds the conversation. Knows nothing of
models or platforms, and of Celery only that a claim's task is a line in a list.

A claim's life: `submit` makes it (queued) - `take` (taken) - `finish` (queued, taken again, or released). Whatever
leaves it queued puts its task into the list in the same step. A lease that ends means that the task was lost or its
worker died: `sweep` sends it again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, cast

import redis
import structlog

from personas.conversation import Conversation, Role, Turn
from personas.store import MAX_TURNS, REPLY_MARK, TURNS_AFTER_CUT, decode_turn, encode_turn, readable_turns
from worker.queue import keys, scripts
from worker.queue.message import EntryKind, Kind, Message, OutboxEntry, Submitted, Taken
from worker.queue.task import reply_task

__all__ = ["Kind", "Mailbox", "Message", "OutboxEntry", "Outcome", "Submitted", "Taken"]

log = structlog.get_logger(__name__)

LEASE_S: Final = 12.0
SEEN_S: Final = 24 * 60 * 60
MAX_TOGETHER: Final = 32  # turns of one author that one reply answers
MAX_SWEPT: Final = 1000
# A conversation's turns come anew with every message; reading 200 of them takes longer than the rest of `take`. This
# keeps what people said in the worker's memory, also after a reset, until so many other turns were read.
_cached_turn = lru_cache(maxsize=4_096)(decode_turn)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `finish` did. `is_accepted` is False when the fence was stale or the conversation begun anew meanwhile.

    `next` is what to answer now; None where a task was sent for it, or the conversation is released or lost.
    """

    is_accepted: bool
    next: Taken | None = None


class Mailbox:
    """The mailboxes in one Redis, as one process with the given lease sees them."""

    def __init__(self, client: redis.Redis, *, worker: str = "", lease_s: float = LEASE_S) -> None:
        self._redis = client
        self.worker = worker
        self.lease_s = lease_s
        self._submit = client.register_script(scripts.SUBMIT)
        self._take = client.register_script(scripts.TAKE)
        self._discard = client.register_script(scripts.DISCARD)
        self._begin = client.register_script(scripts.BEGIN)
        self._finish = client.register_script(scripts.FINISH)
        self._renew = client.register_script(scripts.RENEW)
        self._revive = client.register_script(scripts.REVIVE)
        self._expired = client.register_script(scripts.EXPIRED)

    def submit(self, message: Message, submission: str | None = None) -> Submitted:
        """Accept a message unless it was seen before; claim its conversation and send a task if nobody holds it.

        Repeat an attempt whose answer got lost with the same `submission`, and it counts once.
        """
        where, message_id = message.conversation, message.turn.message_id
        seen = keys.seen_key(where, message_id) if message_id else ""
        fence, position, is_duplicate, num_workers = self._submit(
            keys=[*keys.script_keys(where), seen, keys.WORKERS],
            args=[
                str(where),
                message.to_json(),
                submission or uuid.uuid4().hex,
                self.lease_s,
                SEEN_S,
                *reply_task(where),
            ],
        )
        return Submitted(int(fence) or None, int(position), bool(is_duplicate), int(num_workers))

    def take(self, conversation: Conversation, fence: int) -> Taken | None:
        """Take what is to be answered; None if the fence is stale, taken already, or nothing is left to answer."""
        reply = self._take(keys=keys.script_keys(conversation), args=self._take_args(conversation, fence))
        return self._taken(conversation, *reply)

    def begin(self, taken: Taken) -> bool:
        """Say that messages whose worker died before are being answered now; False: the claim is lost.

        Until then a further death is not counted against them.
        """
        where = taken.conversation
        return bool(self._begin(keys=keys.script_keys(where), args=[str(where), taken.fence]))

    def finish(
        self,
        taken: Taken,
        entry: OutboxEntry,
        *,
        takes_next: bool = True,
        buries: bool = False,
    ) -> Outcome:
        """Deliver `entry`, add a reply to the history, and take the next messages or let the conversation go.

        Without `takes_next` a task is sent for the next messages.
        With `buries` the messages go to the dead-letter list and their turns leave the history.
        """
        is_reply = entry.kind != EntryKind.NOTICE
        turn = Turn(Role.BOT, entry.text, name=entry.persona, message_id=f"{REPLY_MARK}{taken.fence}")
        is_delivered, *left = self._finish(
            keys=keys.script_keys(taken.conversation),
            args=[
                *self._take_args(taken.conversation, taken.fence),
                encode_turn(turn) if is_reply else "",
                entry.to_json(),
                taken.replaced_line if is_reply else "",
                "1" if buries else "0",
                *(("", "") if takes_next else reply_task(taken.conversation)),
            ],
        )
        return Outcome(bool(is_delivered), self._taken(taken.conversation, *left))

    def renew(self, held: Iterable[tuple[Conversation, int]]) -> list[Conversation]:
        """Lengthen the leases of what this worker is answering; return the conversations it has lost."""
        claims = list(held)
        with self._redis.pipeline(transaction=False) as pipe:
            for conversation, fence in claims:
                args: list[Any] = [str(conversation), fence, self.lease_s]
                self._renew(keys=keys.script_keys(conversation), args=args, client=pipe)
            renewed = pipe.execute()
        return [conversation for (conversation, _), is_held in zip(claims, renewed, strict=True) if not is_held]

    def sweep(self) -> list[tuple[Conversation, int]]:
        """Announce this worker as alive; fence off the dead; return the claims for which a task was sent again."""
        expired = cast(
            "list[str]",
            self._expired(keys=[keys.WORKERS, keys.CLAIMS], args=[self.worker, self.lease_s, MAX_SWEPT]),
        )
        revived = []
        for conversation in map(Conversation.parse, expired):
            args: list[Any] = [str(conversation), self.lease_s, *reply_task(conversation)]
            if fence := int(cast(int, self._revive(keys=keys.script_keys(conversation), args=args))):
                revived.append((conversation, fence))
        return revived

    def leave(self) -> None:
        """Take this worker off the list of the living."""
        self._redis.zrem(keys.WORKERS, self.worker)

    def num_workers(self) -> int:
        """Return how many workers are alive."""
        seconds, _ = self._redis.time()
        return int(self._redis.zcount(keys.WORKERS, seconds, "+inf"))

    def _take_args(self, conversation: Conversation, fence: int) -> list[Any]:
        return [str(conversation), fence, self.worker, self.lease_s, MAX_TOGETHER, MAX_TURNS, TURNS_AFTER_CUT]

    def _taken(self, conversation: Conversation, status: str, *rest: Any) -> Taken | None:
        """Read what the Lua function `take` returned; lines that are no messages are set aside, and the rest taken."""
        if status != "taken":
            return None
        fence, num_deaths, pending, history, *settings = rest
        messages, lost = _messages(conversation, pending)
        if lost:
            log.warning("messages not readable, set aside as dead", conversation=str(conversation), number=len(lost))
            args = [*self._take_args(conversation, int(fence)), *lost]
            return self._taken(conversation, *self._discard(keys=keys.script_keys(conversation), args=args))
        own, of_place = (dict(zip(fields[::2], fields[1::2], strict=True)) for fields in settings)
        said = readable_turns(conversation, history, _cached_turn)
        replaced_line = ""
        if messages[-1].kind == Kind.REGENERATE and said and said[-1][1].role == Role.BOT:
            replaced_line, _ = said.pop()
        return Taken(
            conversation,
            int(fence),
            tuple(turn for _, turn in said),
            tuple(messages),
            (of_place, own),
            int(num_deaths),
            replaced_line,
        )


def _messages(conversation: Conversation, lines: Iterable[str]) -> tuple[list[Message], list[str]]:
    """Return the messages in the lines of `pending`, and the lines that are none."""
    messages, lost = [], []
    for line in lines:
        try:
            messages.append(Message.from_json(conversation, line.partition(" ")[2]))
        except ValueError:
            lost.append(line)
    return messages, lost
