"""The crowd of the retraining benchmark: who talks is answered, or counted as dropped or as answered twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.crowd import Crowd, Heard, through_queue
from personas.catalogue import load_catalogue
from personas.settings import Settings
from tests.helpers.answering import scripted_worker
from tests.helpers.discord_rooms import rooms_on_discord
from tests.helpers.telegram_rooms import rooms_on_telegram
from tests.helpers.worker_process import wait_until
from worker.queue.keys import outbox_key
from worker.queue.message import EntryKind, OutboxEntry


@dataclass
class Hall:
    """A way on which `answers` come to whatever is said."""

    answers: tuple[bool, ...]
    delay_s: float = 0.0
    said: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def speak(self, room: str, text: str) -> None:
        if not text:
            raise ValueError("nothing to say")
        await self.said.put(room)

    async def heard(self) -> AsyncIterator[Heard]:
        while True:
            room = await self.said.get()
            await asyncio.sleep(self.delay_s)
            for is_reply in self.answers:
                yield Heard(room, is_reply)


async def test_people_talk_side_by_side_and_are_heard_to_the_end(redis_server: str) -> None:
    with scripted_worker(redis_server, load_catalogue(None)) as script:
        async with through_queue(redis_server, deadline_s=60) as way:
            crowd = Crowd(way, num_people=6, every_s=0.1)
            crowd.arrive()
            await asyncio.to_thread(wait_until, lambda: len(script.heard) >= 40, "all have talked for a while")
            await crowd.leave(60)
    assert len(crowd.said) >= 40
    assert (crowd.num_dropped, crowd.num_surplus) == (0, 0)
    longest = max(len(turns) for _, turns in script.heard)
    assert longest == 11, "six turns and the replies between them, then another room"


@pytest.mark.parametrize("rooms_on", [rooms_on_discord, rooms_on_telegram])
async def test_on_a_platform_everybody_is_answered_and_a_reply_that_comes_twice_is_counted(
    redis_server: str, redis_client: redis.Redis, tmp_path: Path, rooms_on: Any
) -> None:
    catalogue = load_catalogue(None)
    with scripted_worker(redis_server, catalogue):
        async with rooms_on(Settings(data_dir=tmp_path, redis_url=redis_server), redis_server) as rooms:
            crowd = Crowd(rooms, num_people=4, every_s=0.4)
            crowd.arrive()
            await crowd.all_answered()
            where = rooms.where(crowd.said[0].room)
            again = OutboxEntry(where, EntryKind.REPLY, "You said: hello", persona=catalogue.names()[0])
            redis_client.xadd(outbox_key(where.platform), {"entry": again.to_json()})
            await asyncio.to_thread(wait_until, lambda: crowd.num_surplus, "it was heard")
            await crowd.leave(60)
    assert (crowd.num_dropped, crowd.num_surplus) == (0, 1)


async def test_what_is_never_answered_is_dropped(redis_server: str) -> None:
    async with through_queue(redis_server, deadline_s=60) as way:
        crowd = Crowd(way, num_people=2, every_s=60)
        crowd.arrive()
        await asyncio.to_thread(wait_until, lambda: crowd.said, "the first has said something")
        await crowd.leave(0.1)
    assert [said.took_s for said in crowd.said] == [None]
    assert crowd.num_dropped == 1


async def test_everybody_has_spoken_again_and_was_answered() -> None:
    crowd = Crowd(Hall((True,)), num_people=3, every_s=0.02)
    crowd.arrive()
    await crowd.all_answered()
    num_said = len(crowd.said)
    await crowd.all_answered()
    assert {said.person for said in crowd.said[num_said:] if said.took_s is not None} == {0, 1, 2}
    await crowd.leave(1)


async def test_who_does_not_catch_up_pauses_after_each_reply() -> None:
    crowd = Crowd(Hall((True,), delay_s=0.05), num_people=1, every_s=0.01, catches_up=False)
    crowd.arrive()
    await crowd.all_answered()
    await crowd.all_answered()
    await crowd.leave(1)
    first, second, *_ = crowd.said
    assert first.took_s is not None
    assert second.due >= first.due + first.took_s + 0.01


async def test_a_second_reply_to_the_same_message_is_counted() -> None:
    crowd = Crowd(Hall((True, True)), num_people=1, every_s=60)
    crowd.arrive()
    await crowd.all_answered()
    await crowd.leave(1)
    assert (len(crowd.said), crowd.num_dropped, crowd.num_surplus) == (1, 0, 1)


async def test_a_notice_is_no_reply_and_people_talk_on() -> None:
    crowd = Crowd(Hall((False,)), num_people=1, every_s=0.01)
    crowd.arrive()
    await asyncio.to_thread(wait_until, lambda: len(crowd.said) >= 2, "something more was said")
    await crowd.leave(1)
    assert crowd.num_dropped == len(crowd.said)


async def test_who_cannot_speak_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.crowd.TEXTS", ("",))
    crowd = Crowd(Hall((True,)), num_people=1, every_s=60)
    crowd.arrive()
    await asyncio.to_thread(wait_until, lambda: crowd.said, "it was tried")
    with pytest.raises(ValueError, match="nothing to say"):
        await crowd.leave(1)
