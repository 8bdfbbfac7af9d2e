"""An adapter's side of the outbox: entries in order, what was pending first, each until it is acknowledged.

Owns the stream's consumer group and the record of delivered parts. One adapter process serves a platform: entries that
an earlier process left unacknowledged are taken over at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import redis
import redis.asyncio
import structlog

from worker.queue import keys
from worker.queue.message import EntryKind, OutboxEntry

__all__ = ["EntryKind", "Outbox", "OutboxEntry"]

log = structlog.get_logger(__name__)

GROUP: Final = "adapter"
BLOCK_MS: Final = 2000  # below the socket's timeout
BATCH: Final = 64
MAX_PAUSE_S: Final = 5.0
# KEYS stream, parts; ARGV group, entry. One command and one answer where a transaction has five.
ACK: Final = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[2])
"""


class Outbox:
    """The outbox of one platform.

    async for entry in outbox.entries(): ...deliver...; await outbox.ack(entry)
    """

    def __init__(self, client: redis.asyncio.Redis, platform: str, consumer: str = "adapter") -> None:
        self._redis = client
        self._stream = keys.outbox_key(platform)
        self._parts = keys.parts_key(platform)
        self._ack = client.register_script(ACK)
        self._consumer = consumer
        self._under_way: set[str] = set()

    async def entries(self) -> AsyncIterator[OutboxEntry]:
        """Yield entries for ever: first those delivered to an adapter before but not acknowledged, then new ones.

        Survives a Redis that is away: what may have been read but not received is read again.
        """
        pause_s = 0.1
        while True:
            try:
                await self._join()
                async for entry in self._read():
                    pause_s = 0.1
                    yield entry
            except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
                log.warning("outbox not readable, trying again", stream=self._stream, error=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)

    async def ack(self, entry: OutboxEntry) -> None:
        """Say that the entry was delivered: nobody will see it again, and Redis does not keep its text."""
        await self._ack(keys=[self._stream, self._parts], args=[GROUP, entry.id])
        self._under_way.discard(entry.id)

    async def mark_part(self, entry: OutboxEntry, num_parts: int) -> None:
        """Remember that the first `num_parts` parts of the entry were sent."""
        await self._hash(self._redis.hset(self._parts, entry.id, str(num_parts)))

    async def parts_done(self, entry: OutboxEntry) -> int:
        """Return how many parts of the entry were sent, by this process or an earlier one."""
        return int(await self._hash(self._redis.hget(self._parts, entry.id)) or 0)

    async def _hash(self, command: Any) -> Any:
        return await command

    async def _join(self) -> None:
        """Create the group if needed, and take over what other consumers left behind."""
        try:
            await self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        start: Any = "0-0"
        while True:
            start, *_ = await self._redis.xautoclaim(
                self._stream, GROUP, self._consumer, min_idle_time=0, start_id=start, count=BATCH, justid=False
            )
            if start in ("0-0", b"0-0"):
                return

    async def _read(self) -> AsyncIterator[OutboxEntry]:
        last = "0"
        while True:
            is_pending = last != ">"
            batch: Any = await self._redis.xreadgroup(
                GROUP, self._consumer, {self._stream: last}, count=BATCH, block=None if is_pending else BLOCK_MS
            )
            entries = batch[0][1] if batch else []
            for entry_id, fields in entries:
                if entry := await self._entry(entry_id, fields):
                    yield entry
            if is_pending:
                last = entries[-1][0] if entries else ">"

    async def _entry(self, entry_id: str, fields: dict[str, str] | None) -> OutboxEntry | None:
        if entry_id in self._under_way:
            return None
        if not fields:  # deleted but still listed as pending
            await self._redis.xack(self._stream, GROUP, entry_id)
            return None
        self._under_way.add(entry_id)
        return OutboxEntry.from_json(entry_id, fields["entry"])
