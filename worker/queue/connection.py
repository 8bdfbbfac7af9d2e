"""Connections to Redis: the one place that knows URLs, timeouts and retries.

`REDIS_URL` may be `redis://`, `rediss://` or `unix:///path`; Celery's own spelling `redis+socket://` is understood too.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis
import redis.asyncio
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

CONNECT_TIMEOUT_S = 2.0
SOCKET_TIMEOUT_S = 5.0
NUM_RETRIES = 2
# Bytes that are no UTF-8 come as half surrogates: whoever reads the line refuses it, and can still name it to Redis.
BYTES_KEPT = "surrogateescape"


def client_url(url: str) -> str:
    """Return `url` as redis-py spells it."""
    return url.replace("redis+socket://", "unix://", 1)


def broker_url(url: str) -> str:
    """Return `url` as Celery spells it."""
    return url.replace("unix://", "redis+socket://", 1)


def connect(url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, num_retries: int = NUM_RETRIES) -> redis.Redis:
    """Return a thread-safe client whose every call ends, answered or not: at a Redis that hangs, after half a minute.

    Whoever has a person waiting gives less time and repeats what is safe to repeat.
    """
    return redis.Redis.from_url(
        client_url(url),
        decode_responses=True,
        encoding_errors=BYTES_KEPT,
        protocol=2,
        socket_timeout=timeout_s,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), num_retries),
        **_tcp_only(url),
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """Return the same kind of client for an event loop."""
    client = redis.asyncio.Redis.from_url(
        client_url(url),
        decode_responses=True,
        encoding_errors=BYTES_KEPT,
        protocol=2,
        socket_timeout=SOCKET_TIMEOUT_S,
        health_check_interval=30,
        **_tcp_only(url),
    )
    pool = client.connection_pool
    pool.connection_class = type("Cancellable", (_Cancellable, pool.connection_class), {})
    return client


class _Cancellable:
    """A connection that lets no cancellation get lost.

    redis-py sends through `asyncio.wait_for`, which before Python 3.12 forgets that it was cancelled when what it waits
    for is done at that moment (https://github.com/python/cpython/issues/86296): the task would go on for ever.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        num_before = task.cancelling() if task else 0
        await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        if task and task.cancelling() > num_before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


def _tcp_only(url: str) -> dict[str, Any]:
    return {} if client_url(url).startswith("unix://") else {"socket_connect_timeout": CONNECT_TIMEOUT_S}
