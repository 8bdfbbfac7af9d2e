"""kill -9 of the Telegram adapter, at the moments that matter: what was accepted is answered, once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis

from personas.conversation import Conversation
from tests.helpers.adapter_process import adapter_process, kill
from tests.helpers.telegram_server import TOKEN, TelegramServer
from tests.helpers.telegram_world import Refused
from tests.helpers.worker_process import worker_process

MAX_AFTER_RESTART_S = 30.0


@pytest.fixture
async def server() -> AsyncIterator[TelegramServer]:
    async with TelegramServer() as running:
        yield running


def settings(url: str, server: TelegramServer) -> dict[str, str]:
    return {"REDIS_URL": url, "TELEGRAM_TOKEN": TOKEN, "PERSONABOT_TELEGRAM_API": server.url}


async def test_a_reply_made_while_the_adapter_was_dead_arrives_once_after_its_restart(
    server: TelegramServer, redis_server: str, redis_client: redis.Redis, model: Path, home: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    where = Conversation("telegram", str(chat.id))
    with adapter_process("telegram", home, **settings(redis_server, server)) as process:
        await server.say(chat, ann, "Will you answer me?")
        await server.until(lambda: redis_client.llen(f"mailbox:{where}") == 1)
        kill(process)
    with worker_process(redis_server, model):
        await server.until(lambda: redis_client.xlen("outbox:telegram") == 1)
        started = time.monotonic()
        with adapter_process("telegram", home, **settings(redis_server, server)):
            await server.until(lambda: server.texts(chat))
            assert time.monotonic() - started < MAX_AFTER_RESTART_S
            await server.say(chat, ann, "And now?")
            await server.until(lambda: len(server.texts(chat)) >= 2)
            await server.until(lambda: redis_client.xlen("outbox:telegram") == 0)
    assert len(server.texts(chat)) == 2


async def test_an_adapter_killed_while_it_sends_sends_the_rest_after_its_restart(
    server: TelegramServer, redis_server: str, redis_client: redis.Redis, model: Path, home: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    with adapter_process("telegram", home, **settings(redis_server, server)) as process:

        def die(method: str, _parameters: object) -> None:
            if method == "sendMessage" and process.poll() is None:
                kill(process)
                raise Refused(502, "Bad Gateway")  # the connection broke before the server acted

        server.on_call(die)
        with worker_process(redis_server, model):
            await server.say(chat, ann, "Will you answer me?")
            await server.until(lambda: process.poll() is not None)
            assert server.texts(chat) == []
            started = time.monotonic()
            with adapter_process("telegram", home, **settings(redis_server, server)):
                await server.until(lambda: server.texts(chat))
                assert time.monotonic() - started < MAX_AFTER_RESTART_S
                await server.until(lambda: redis_client.xlen("outbox:telegram") == 0)
    assert len(server.texts(chat)) == 1


async def test_an_update_that_the_dead_adapter_had_not_confirmed_is_not_lost(
    server: TelegramServer, redis_server: str, model: Path, home: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    await server.say(chat, ann, "Will you answer me?")
    with adapter_process("telegram", home, **settings(redis_server, server)) as process:
        await server.until(lambda: server.called("getUpdates"))
        kill(process)
    with (
        worker_process(redis_server, model),
        adapter_process("telegram", home, **settings(redis_server, server)),
    ):
        await server.until(lambda: server.texts(chat))
        await server.say(chat, ann, "And now?")
        await server.until(lambda: len(server.texts(chat)) >= 2)
    assert len(server.texts(chat)) == 2
