"""The publisher: accepted messages and their tasks, and what happens while Redis is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from worker.queue import keys
from worker.queue.connection import connect
from worker.queue.errors import QueueUnavailable
from worker.queue.message import Message
from worker.queue.publish import Publisher
from worker.queue.server import EmbeddedServer

ROOM = Conversation("discord", "42")


def message(text: str, message_id: str = "") -> Message:
    return Message(ROOM, Turn(Role.USER, text, author_id="ann", message_id=message_id))


def tasks(client: redis.Redis) -> list[dict[str, object]]:
    """Return what lies in Celery's queue."""
    return [json.loads(line) for line in client.lrange("chat", 0, -1)]


async def test_one_task_is_sent_for_a_conversation_however_many_messages_wait(
    redis_server: str, redis_client: redis.Redis
) -> None:
    with Publisher(redis_server) as publisher:
        first, second = await asyncio.gather(publisher.submit(message("one")), publisher.submit(message("two")))
    assert first.fence is not None
    assert second.fence is None
    [task] = tasks(redis_client)
    assert task["headers"]["task"] == "worker.tasks.reply"  # type: ignore[index]
    assert redis_client.llen(keys.mailbox_key(ROOM)) == 2


async def test_order_of_submission_is_the_order_in_the_mailbox(redis_server: str, redis_client: redis.Redis) -> None:
    with Publisher(redis_server) as publisher:
        await asyncio.gather(*(publisher.submit(message(str(number))) for number in range(50)))
    lines = redis_client.lrange(keys.mailbox_key(ROOM), 0, -1)
    texts = [Message.from_json(ROOM, line.split(" ", 1)[1]).turn.text for line in lines]
    assert texts == [str(number) for number in range(50)]


async def test_message_whose_waiter_was_cancelled_is_still_accepted(
    redis_server: str, redis_client: redis.Redis
) -> None:
    publisher = Publisher(redis_server)
    waiting = asyncio.create_task(publisher.submit(message("hi")))
    await asyncio.sleep(0)
    waiting.cancel()
    with publisher:
        pass
    assert redis_client.llen(keys.mailbox_key(ROOM)) == 1


async def test_message_that_redis_did_not_take_is_refused_and_the_loop_stays_free(tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path / 'nobody.sock'}"
    ticks = 0
    with Publisher(nobody) as publisher:
        submitting = asyncio.create_task(publisher.submit(message("hi")))
        while not submitting.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(QueueUnavailable):
            await submitting
    assert ticks > 10


async def test_outage_shorter_than_the_retries_is_not_noticed(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "redis")
    server.start()
    with Publisher(server.url) as publisher:
        await publisher.submit(message("one", "1"))
        server.kill()
        submitting = asyncio.create_task(publisher.submit(message("two", "2")))
        await asyncio.to_thread(server.start)
        assert not (await submitting).is_duplicate
    client = connect(server.url)
    assert client.llen(keys.mailbox_key(ROOM)) == 2
    client.close()
    server.release()
