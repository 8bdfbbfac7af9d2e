"""The Celery task of a claim, as a line in Redis that Celery's consumer reads as its own producer's.

The mailbox's scripts write it in the step that makes the claim, so that neither is ever there without the other. Its
form is Celery's message protocol 2 (https://docs.celeryq.dev/en/stable/internals/protocol.html) in kombu's envelope.
"""

from __future__ import annotations

import json
import uuid
from typing import Final

from personas.conversation import Conversation
from worker.queue.keys import CHAT_QUEUE

REPLY_TASK: Final = "worker.tasks.reply"
_FENCE: Final = "fence"
_CALLBACKS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def reply_task(conversation: Conversation) -> tuple[str, str]:
    """Return the task `reply(conversation, fence)` up to the fence, which only the script knows, and after it."""
    name = str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": REPLY_TASK,
        "id": name,
        "root_id": name,
        "parent_id": None,
        "group": None,
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "ignore_result": True,
    }
    properties = {
        "correlation_id": name,
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": CHAT_QUEUE},
        "delivery_tag": name,
        "priority": 0,
    }
    envelope = {
        "headers": headers,
        "properties": properties,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "body": json.dumps([[str(conversation), _FENCE], {}, _CALLBACKS]),
    }
    # The last one: nothing but the callbacks comes after it, whatever the conversation is called.
    before, _, after = json.dumps(envelope).rpartition(json.dumps(json.dumps(_FENCE))[1:-1])
    return before, after
