"""What a person is told while a message goes in."""

from __future__ import annotations

import asyncio

import pytest
import redis

from bots import intake as module
from bots.delivery import Delivery
from bots.intake import NO_TEXT, NOBODY_THERE, Heard, Intake, notice_of_silence
from bots.services import Services
from bots.typing import Typing
from personas.conversation import Conversation
from tests.helpers.paper import HERE, Paper
from worker.queue.outbox import Outbox


def heard(text: str = "hello", message_id: str = "m1", place: str = "1") -> Heard:
    return Heard(Conversation("paper", place), text, "7", "Ann", message_id, is_group=True)


@pytest.fixture
def typing() -> Typing:
    return Typing(Paper().show_typing, every_s=60)


async def test_a_message_is_taken_and_typing_begins(
    services: Services, redis_client: redis.Redis, typing: Typing
) -> None:
    assert await Intake(services, typing).accept(heard()) == ""
    assert redis_client.llen(f"mailbox:{HERE}") == 1
    assert typing.is_on(HERE)
    await typing.close()


async def test_an_empty_message_is_not_taken(services: Services, typing: Typing) -> None:
    assert await Intake(services, typing).accept(heard("  ")) == NO_TEXT
    assert not typing.is_on(HERE)


async def test_a_duplicate_that_is_answered_already_leaves_no_typing(
    services: Services, redis_client: redis.Redis, typing: Typing
) -> None:
    intake = Intake(services, typing)
    await intake.accept(heard())
    typing.stop(HERE)
    redis_client.delete(f"claim:{HERE}")
    assert await intake.accept(heard()) == ""
    assert not typing.is_on(HERE)


async def test_a_long_queue_is_told(services: Services, typing: Typing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOTICE_FROM_POSITION", 3)
    intake = Intake(services, typing)
    notices = [await intake.accept(heard(place=str(place))) for place in range(5)]
    assert notices[:3] == ["", "", ""]
    assert "3 conversations" in notices[3]
    await typing.close()


async def test_an_overdue_reply_is_explained_only_where_no_worker_lives(
    services: Services, redis_client: redis.Redis, typing: Typing
) -> None:
    paper = Paper()
    delivery = Delivery(services, Outbox(services.redis, "paper"), paper, typing)
    redis_client.zadd("workers", {"one": 9e12})
    await notice_of_silence(services, delivery, HERE)
    redis_client.delete("workers")
    await notice_of_silence(services, delivery, HERE)
    async with asyncio.timeout(60):
        while not paper.sent:  # noqa: ASYNC110  # the lane's task is not ours to await
            await asyncio.sleep(0.01)
    assert paper.sent == [(HERE, NOBODY_THERE)]
    await delivery.close()
