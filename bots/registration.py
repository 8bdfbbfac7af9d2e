"""Telling a platform the commands once: again only when they have changed, never merely because of a reconnect."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
import structlog

log = structlog.get_logger(__name__)


async def register_once(
    client: redis.asyncio.Redis, name: str, commands: list[dict[str, Any]], register: Callable[[], Awaitable[object]]
) -> bool:
    """Call `register` unless these very commands were registered for `name` before; without Redis call it anyway."""
    key = f"registered:{name}"
    digest = hashlib.sha256(json.dumps(commands, sort_keys=True, default=str).encode()).hexdigest()
    try:
        known = await client.get(key)
    except redis.RedisError:
        known = None
    if known == digest:
        return False
    await register()
    log.info("commands registered", name=name, num_commands=len(commands))
    try:
        await client.set(key, digest)
    except redis.RedisError as error:
        log.warning("registration not remembered", name=name, error=repr(error))
    return True
