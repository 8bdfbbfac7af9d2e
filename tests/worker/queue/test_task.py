"""The chat's task as the mailbox's scripts write it, beside what Celery's own producer writes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from tests.helpers.answering import arguments
from worker.queue import keys
from worker.queue.app import make_app
from worker.queue.mailbox import Mailbox
from worker.queue.message import Message
from worker.queue.task import REPLY_TASK

ROOM = Conversation("discord", "42", "7")


def test_task_says_what_one_sent_by_celery_would(redis_server: str, redis_client: redis.Redis) -> None:
    fence = Mailbox(redis_client).submit(Message(ROOM, Turn(Role.USER, "hi"))).fence
    make_app(redis_server).send_task(REPLY_TASK, args=[str(ROOM), fence], queue=keys.CHAT_QUEUE, ignore_result=True)
    theirs, ours = (json.loads(line) for line in redis_client.lrange(keys.CHAT_QUEUE, 0, -1))
    assert json.loads(ours["body"]) == json.loads(base64.b64decode(theirs["body"]))
    assert (ours["content-type"], ours["content-encoding"]) == (theirs["content-type"], theirs["content-encoding"])
    assert _without_ids(ours["headers"]).items() <= _without_ids(theirs["headers"]).items()
    assert _without_ids(ours["properties"]).keys() == _without_ids(theirs["properties"]).keys() - {"body_encoding"}
    for name in ("delivery_mode", "delivery_info", "priority"):
        assert ours["properties"][name] == theirs["properties"][name], name


@pytest.mark.parametrize("place", ["-100", '"fence"', 'a "quoted" \\ one', "\x00"])
def test_task_names_any_conversation(redis_client: redis.Redis, place: str) -> None:
    room = Conversation("discord", place)
    fence = Mailbox(redis_client).submit(Message(room, Turn(Role.USER, "hi"))).fence
    [line] = redis_client.lrange(keys.CHAT_QUEUE, 0, -1)
    assert arguments(line) == (str(room), fence)


def test_tasks_have_names_of_their_own(redis_client: redis.Redis) -> None:
    for place in ("1", "2"):
        Mailbox(redis_client).submit(Message(Conversation("discord", place), Turn(Role.USER, "hi")))
    lines = [json.loads(line) for line in redis_client.lrange(keys.CHAT_QUEUE, 0, -1)]
    assert len({line["properties"]["delivery_tag"] for line in lines}) == 2


def _without_ids(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in ("id", "root_id", "correlation_id")}
