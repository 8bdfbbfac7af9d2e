"""The queue's keys in Redis, and what each holds. The conversation's own keys are in `personas.store`.

mailbox:{conversation}      list: messages that wait, oldest first, each "resets json" (see `message`)
pending:{conversation}      list: the messages being answered; their turns are in the history already
claim:{conversation}        hash: fence, taken, begun (0 or 1), worker, deaths, epoch; there while somebody holds it
seen:{conversation}:{id}    string: the submission that brought platform message `id`; gone after a day
claims                      sorted set: claimed conversations by the end of their lease
queued                      sorted set: claimed conversations that no worker has taken yet, by fence
workers                     sorted set: living workers by the end of their lease
fences                      counter: fencing numbers, never reused
newest_taken                counter: the highest fence that was taken
dead                        list: messages that killed their worker twice, and lines that are no messages
outbox:{platform}           stream: replies waiting to be delivered
parts:{platform}            hash: how many parts of an entry were delivered already
pieces:{conversation}       channel: pieces of the reply, for a person who watches it come
"""

from __future__ import annotations

from typing import Final

from personas.conversation import Conversation
from personas.store import history_key, settings_key, state_key

CLAIMS: Final = "claims"
QUEUED: Final = "queued"
WORKERS: Final = "workers"
FENCES: Final = "fences"
NEWEST_TAKEN: Final = "newest_taken"
DEAD: Final = "dead"
# Celery's own list of waiting tasks, named after the queue.
CHAT_QUEUE: Final = "chat"


def mailbox_key(conversation: Conversation | str) -> str:
    """Return the key of the waiting messages."""
    return f"mailbox:{conversation}"


def pending_key(conversation: Conversation | str) -> str:
    """Return the key of the messages being answered."""
    return f"pending:{conversation}"


def claim_key(conversation: Conversation | str) -> str:
    """Return the key of the claim."""
    return f"claim:{conversation}"


def seen_key(conversation: Conversation | str, message_id: str) -> str:
    """Return the key that remembers a platform message for a day."""
    return f"seen:{conversation}:{message_id}"


def outbox_key(platform: str) -> str:
    """Return the key of the platform's outbox."""
    return f"outbox:{platform}"


def parts_key(platform: str) -> str:
    """Return the key of the delivered parts."""
    return f"parts:{platform}"


def pieces_channel(conversation: Conversation | str) -> str:
    """Return the channel on which the pieces of a reply are told."""
    return f"pieces:{conversation}"


def script_keys(conversation: Conversation) -> list[str]:
    """Return the keys of a conversation in the order the Lua scripts name them; "" for what it has not."""
    name = str(conversation)
    place = Conversation(conversation.platform, conversation.place) if conversation.thread else None
    return [
        mailbox_key(name),
        pending_key(name),
        claim_key(name),
        history_key(name),
        state_key(name),
        outbox_key(conversation.platform),
        CLAIMS,
        QUEUED,
        FENCES,
        DEAD,
        NEWEST_TAKEN,
        CHAT_QUEUE,
        settings_key(name),
        settings_key(place) if place else "",
    ]
