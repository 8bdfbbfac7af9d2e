"""kill -9 of the Discord adapter, a real process on real sockets: what was accepted is answered, once."""

from __future__ import annotations

import time
from pathlib import Path

import redis

from personas.conversation import Conversation
from tests.helpers.adapter_process import adapter_process, kill
from tests.helpers.discord_server import TOKEN, DiscordServer
from tests.helpers.discord_world import BOT_ID, Refused
from tests.helpers.worker_process import worker_process

MAX_AFTER_RESTART_S = 30.0


async def test_a_reply_survives_adapters_killed_before_and_while_it_is_sent(
    redis_server: str, redis_client: redis.Redis, model: Path, home: Path
) -> None:
    async with DiscordServer() as server:
        settings = {"REDIS_URL": redis_server, "DISCORD_TOKEN": TOKEN, "PERSONABOT_DISCORD_API": server.url}
        ann, channel = server.user("Ann"), server.channel("general")
        where = Conversation("discord", channel)
        with adapter_process("discord", home, **settings) as process:
            await server.until(lambda: server.identified, 60)
            await server.say(channel, ann, f"<@{BOT_ID}> Will you answer me?")
            await server.until(lambda: redis_client.llen(f"mailbox:{where}") == 1, 60)
            kill(process)
        with worker_process(redis_server, model):
            await server.until(lambda: redis_client.xlen("outbox:discord") == 1, 60)
            with adapter_process("discord", home, **settings) as dying:

                def die(_message: dict[str, object]) -> None:
                    if dying.poll() is None:
                        kill(dying)
                        raise Refused(500)  # the message stands, but nobody is left to hear of it

                server.after_create = die
                await server.until(lambda: dying.poll() is not None, 60)
            started = time.monotonic()
            with adapter_process("discord", home, **settings):
                await server.until(lambda: redis_client.xlen("outbox:discord") == 0, 60)
                assert time.monotonic() - started < MAX_AFTER_RESTART_S
        assert len(server.sent(channel)) == 1
        assert len(server.called("PUT", "/applications/.*")) == 1
