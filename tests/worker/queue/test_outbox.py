"""The adapter's side of the outbox: what it reads, in which order, and what a restart finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from personas.conversation import Conversation
from worker.queue import keys
from worker.queue.connection import connect, connect_async
from worker.queue.message import EntryKind, OutboxEntry
from worker.queue.outbox import Outbox
from worker.queue.server import EmbeddedServer

ROOM = Conversation("discord", "42")
PATIENCE_S = 30


@pytest.fixture
async def client(redis_server: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect_async(redis_server)
    yield client
    await client.aclose()


def put(client: redis.Redis, *texts: str) -> None:
    for text in texts:
        entry = OutboxEntry(ROOM, EntryKind.REPLY, text, persona="Ada", reply_to="1", reply_id="5", seed=7)
        client.xadd(keys.outbox_key("discord"), {"entry": entry.to_json()})


async def read(outbox: Outbox, num_entries: int) -> list[OutboxEntry]:
    found: list[OutboxEntry] = []
    async with asyncio.timeout(PATIENCE_S):
        async for entry in outbox.entries():
            found.append(entry)
            if len(found) == num_entries:
                break
    return found


async def test_entries_come_in_order_and_complete(client: redis.asyncio.Redis, redis_client: redis.Redis) -> None:
    put(redis_client, "one", "two")
    entries = await read(Outbox(client, "discord"), 2)
    assert [entry.text for entry in entries] == ["one", "two"]
    assert (entries[0].conversation, entries[0].seed, entries[0].reply_id) == (ROOM, 7, "5")
    assert 0 < len(entries[0].id) <= 25


async def test_entry_that_arrives_while_waiting_is_read(client: redis.asyncio.Redis, redis_client: redis.Redis) -> None:
    reading = asyncio.create_task(read(Outbox(client, "discord"), 1))
    await asyncio.to_thread(put, redis_client, "late")
    assert [entry.text for entry in await reading] == ["late"]


async def test_restarted_adapter_first_delivers_what_was_pending(
    client: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    put(redis_client, "one", "two")
    crashed = Outbox(client, "discord", consumer="before")
    [first, _] = await read(crashed, 2)
    await crashed.ack(first)
    put(redis_client, "three")
    assert [entry.text for entry in await read(Outbox(client, "discord"), 2)] == ["two", "three"]


async def test_acknowledged_entry_leaves_nothing_behind(client: redis.asyncio.Redis, redis_client: redis.Redis) -> None:
    put(redis_client, "one")
    outbox = Outbox(client, "discord")
    [entry] = await read(outbox, 1)
    await outbox.mark_part(entry, 1)
    await outbox.ack(entry)
    assert redis_client.xlen(keys.outbox_key("discord")) == 0
    assert redis_client.hlen(keys.parts_key("discord")) == 0


async def test_parts_that_were_sent_are_known_after_a_restart(
    client: redis.asyncio.Redis, redis_client: redis.Redis
) -> None:
    put(redis_client, "a very long one")
    [entry] = await read(Outbox(client, "discord"), 1)
    await Outbox(client, "discord").mark_part(entry, 2)
    assert await Outbox(client, "discord").parts_done(entry) == 2


@pytest.mark.parametrize("num_switches", range(6))
async def test_reader_that_is_cancelled_right_after_an_entry_ends(
    client: redis.asyncio.Redis, redis_client: redis.Redis, num_switches: int
) -> None:
    put(redis_client, "one")
    outbox, is_acknowledged = Outbox(client, "discord"), asyncio.Event()

    async def collect() -> None:
        async for entry in outbox.entries():
            await outbox.ack(entry)
            is_acknowledged.set()

    collecting = asyncio.create_task(collect())
    await is_acknowledged.wait()
    for _ in range(num_switches):
        await asyncio.sleep(0)
    collecting.cancel()
    done, _ = await asyncio.wait([collecting], timeout=PATIENCE_S)
    assert done
    assert collecting.cancelled()


async def test_reader_survives_a_server_that_is_killed_and_loses_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "redis")
    server.start()
    client = connect_async(server.url)
    outbox = Outbox(client, "discord")
    writer = connect(server.url)
    put(writer, "one")
    found: asyncio.Queue[str] = asyncio.Queue()

    async def collect() -> None:
        async for entry in outbox.entries():
            found.put_nowait(entry.text)

    collecting = asyncio.create_task(collect())
    async with asyncio.timeout(PATIENCE_S):
        assert await found.get() == "one"
        server.kill()
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(put, writer, "two")
        assert await found.get() == "two"
    collecting.cancel()
    await client.aclose()
    writer.close()
    await asyncio.to_thread(server.release)
    assert found.empty()
