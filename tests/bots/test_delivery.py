"""Delivery on a platform that does as it is told: order, parts, retries, what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import redis

from bots import delivery as module
from bots.command import Response
from bots.delivery import Delivery, Moved, NotEditable, TryLater, Undeliverable
from bots.services import Services
from bots.speech import Speech
from bots.typing import Typing
from personas.conversation import Conversation, Role, Turn
from tests.helpers.paper import HERE, THERE, Paper
from worker.queue.message import EntryKind, OutboxEntry
from worker.queue.outbox import Outbox


@asynccontextmanager
async def delivering(services: Services, paper: Paper) -> AsyncIterator[Delivery]:
    typing = Typing(paper.show_typing, every_s=1.0)
    running = Delivery(services, Outbox(services.redis, "paper"), paper, typing)
    task = asyncio.create_task(running.run())
    try:
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await typing.close()
        await running.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # Redis sets no event
            await asyncio.sleep(0.01)


async def put(services: Services, text: str, where: Conversation = HERE, **more: str) -> None:
    entry = OutboxEntry(where, more.pop("kind", EntryKind.REPLY), text, persona="Ada", **more)
    await services.redis.xadd("outbox:paper", {"entry": entry.to_json()})


def is_empty(client: redis.Redis) -> bool:
    return client.xlen("outbox:paper") == 0


async def test_order_holds_in_a_conversation_and_none_waits_for_another(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    paper.failures = [TryLater("slow", 0.3)]
    for text in ("one", "two"):
        await put(services, text)
    await put(services, "elsewhere", THERE)
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert paper.sent == [(THERE, "Ada: elsewhere"), (HERE, "Ada: one"), (HERE, "Ada: two")]


async def test_parts_that_were_sent_before_a_restart_are_not_sent_again(
    services: Services, redis_client: redis.Redis
) -> None:
    text = " ".join(f"word{number}" for number in range(40))
    await put(services, text)
    paper = Paper()
    paper.max_sent = 1
    async with delivering(services, paper):
        await until(lambda: paper.has_failed)
    assert len(paper.sent) == 1
    paper.max_sent = None
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert len(paper.sent) == 3
    assert " ".join(part for _, part in paper.sent) == f"Ada: {text}"


async def test_what_can_never_be_delivered_is_given_up_and_the_next_goes_on(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    paper.failures = [Undeliverable("blocked")]
    await put(services, "one")
    await put(services, "two")
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert paper.sent == [(HERE, "Ada: two")]


async def test_a_conversation_that_moved_is_followed(services: Services, redis_client: redis.Redis) -> None:
    paper = Paper()
    paper.failures = [Moved(THERE)]
    await put(services, "one")
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert paper.sent == [(THERE, "Ada: one")]


async def test_a_regenerated_reply_takes_the_place_of_every_part_of_the_old_one(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    await put(services, "short now", kind=EntryKind.REGENERATED, replaces="id7,id8")
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert paper.edited == [("id7", "Ada: short now")]
    assert paper.deleted == ["id8"]
    assert paper.sent == []


async def test_a_regenerated_reply_is_sent_anew_where_the_old_one_is_gone(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    paper.failures = [NotEditable("deleted")]
    await put(services, "anew", kind=EntryKind.REGENERATED, replaces="id7")
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert paper.sent == [(HERE, "Ada: anew")]


async def test_the_history_learns_the_message_ids(services: Services, redis_client: redis.Redis) -> None:
    services.store.append(HERE, Turn(Role.BOT, "one", message_id="reply:5"))
    paper = Paper()
    await put(services, "one", reply_id="5")
    async with delivering(services, paper):
        await until(lambda: is_empty(redis_client))
    assert services.store.history(HERE)[0].message_id == "id1"


async def test_a_notice_is_tried_a_few_times_and_then_dropped(services: Services) -> None:
    paper = Paper()
    paper.failures = [TryLater("down", 0.0)] * module.MAX_NOTICE_ATTEMPTS
    async with delivering(services, paper) as running:
        await running.say(HERE, Response("lost"))
        await running.say(HERE, Response("heard", speech=Speech("Ada", "hello")))
    assert paper.sent == [(HERE, "heard\n\nAda: hello")]


async def test_typing_goes_on_while_the_conversation_is_still_being_answered(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    redis_client.hset(f"claim:{HERE}", "fence", "1")
    await put(services, "one")
    await put(services, "two", THERE)
    async with delivering(services, paper) as running:
        await until(lambda: is_empty(redis_client))
        await until(lambda: running._typing.is_on(HERE))
        assert not running._typing.is_on(THERE)


async def test_a_send_under_way_may_finish_when_the_adapter_stops(
    services: Services, redis_client: redis.Redis
) -> None:
    paper = Paper()
    paper.gate = asyncio.Event()
    await put(services, "one")
    async with delivering(services, paper):
        await until(lambda: paper.is_sending)
        asyncio.get_running_loop().call_later(0.1, paper.gate.set)
    assert paper.sent == [(HERE, "Ada: one")]
    assert is_empty(redis_client)
