"""The Discord adapter over real sockets: signing in, resuming, rate limits, and sends that must not double."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bots.discord.app import serve
from bots.errors import TokenRefused
from bots.services import Services
from personas.conversation import Conversation
from personas.settings import Settings
from tests.helpers.answering import Script
from tests.helpers.discord_server import TOKEN, DiscordServer
from tests.helpers.discord_world import BOT_ID, MODERATOR, Refused
from worker.queue.message import EntryKind, OutboxEntry

ME = f"<@{BOT_ID}>"


@pytest.fixture
async def server() -> AsyncIterator[DiscordServer]:
    async with DiscordServer() as running:
        yield running


@asynccontextmanager
async def adapter(
    server: DiscordServer, services: Services, tmp_path: Path, token: str = TOKEN
) -> AsyncIterator[asyncio.Task[None]]:
    settings = Settings(data_dir=tmp_path, discord_token=token, discord_api=server.url, redis_url="redis://unused")
    stop = asyncio.Event()
    num_before = len(server.identified)
    task = asyncio.create_task(serve(settings, services, stop))
    try:
        await server.until(lambda: task.done() or len(server.identified) > num_before)
        yield task
    finally:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_signs_in_without_privileged_intents_and_answers(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    ann, channel = server.user("Ann"), server.channel("general")
    private = server.private_channel(ann)
    async with adapter(server, services, tmp_path):
        await server.say(channel, ann, "not for the bot")
        await server.say(channel, ann, f"{ME} hello")
        await server.say(private, ann, "psst")
        await server.until(lambda: server.sent(channel) and server.sent(private))
        await server.say(channel, ann, "again", reply_to=server.messages[channel][-1])
        await server.until(lambda: len(server.sent(channel)) == 2)
    assert server.sent(channel) == ["**Ada:** You said: hello", "**Ada:** You said: again"]
    assert server.sent(private) == ["**Ada:** You said: psst"]
    assert server.num_heartbeats >= 1
    assert server.violations == []


async def test_what_is_said_while_the_socket_is_cut_is_answered_after_the_resume(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    ann, channel = server.user("Ann"), server.channel("general")
    async with adapter(server, services, tmp_path):
        await server.say(channel, ann, f"{ME} one")
        await server.until(lambda: server.sent(channel))
        await server.drop_sockets()
        await server.say(channel, ann, f"{ME} two")
        await server.until(lambda: len(server.sent(channel)) == 2)
    assert server.num_resumes == 1
    assert server.sent(channel)[1] == "**Ada:** You said: two"
    assert len(server.called("PUT", "/applications/.*")) == 1


async def test_an_invalidated_session_is_begun_anew_on_the_same_server(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    ann, channel = server.user("Ann"), server.channel("general")
    async with adapter(server, services, tmp_path):
        await server.say(channel, ann, f"{ME} one")
        await server.until(lambda: server.sent(channel))
        await server.drop_sockets()
        server.invalidate_sessions()
        await server.until(lambda: len(server.identified) == 2)
        await server.say(channel, ann, f"{ME} two")
        await server.until(lambda: len(server.sent(channel)) == 2)
    assert len(server.called("PUT", "/applications/.*")) == 1


async def test_a_rate_limit_and_a_failing_server_are_waited_out(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    ann, channel = server.user("Ann"), server.channel("general")
    limit = Refused(429, 0, "You are being rate limited.", **{"retry_after": 0.3, "global": False})
    server.refuse_next("POST /channels/.*/messages", limit)
    server.refuse_next("POST /channels/.*/messages", Refused(502))
    async with adapter(server, services, tmp_path):
        await server.say(channel, ann, f"{ME} hello")
        await server.until(lambda: server.sent(channel))
    assert server.sent(channel) == ["**Ada:** You said: hello"]


async def test_a_send_that_is_repeated_after_a_restart_is_not_a_second_message(
    server: DiscordServer, services: Services, tmp_path: Path
) -> None:
    channel = server.channel("general")
    entry = OutboxEntry(Conversation("discord", channel), EntryKind.REPLY, "said once", persona="Ada")
    await services.redis.xadd("outbox:discord", {"entry": entry.to_json()})
    is_first = asyncio.Event()

    def break_connection(message: dict[str, object]) -> None:
        if not is_first.is_set():
            is_first.set()
            raise Refused(500)  # the message stands, the answer is lost

    server.after_create = break_connection
    async with adapter(server, services, tmp_path):
        await server.until(is_first.is_set)
    async with adapter(server, services, tmp_path):
        await server.until(lambda: len(server.called("POST", "/channels/.*/messages")) >= 2)
    assert server.sent(channel) == ["**Ada:** said once"]


async def test_a_slash_command_goes_over_the_wire(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    ann, channel = server.user("Ann"), server.channel("general")
    async with adapter(server, services, tmp_path):
        await server.until(lambda: server.commands)
        refused = await server.slash(channel, ann, "persona set", name="Bob")
        await server.until(lambda: refused in server.answers)
        assert server.answers[refused]["data"]["flags"] == 64
        done = await server.slash(channel, ann, "persona set", MODERATOR, name="Bob")
        await server.until(lambda: done in server.answers and server.sent(channel))
    assert "Bob takes over" in server.answers[done]["data"]["content"]
    assert server.sent(channel) == ["**Bob:** Bob here. Fresh bread?"]
    persona = next(command for command in server.commands if command["name"] == "persona")
    assert [option["name"] for option in persona["options"]] == ["show", "list", "set"]
    assert persona["options"][2]["options"][0]["autocomplete"] is True


async def test_the_bot_speaks_unsigned_where_its_name_is_the_persona(
    server: DiscordServer, services: Services, worker: Script, tmp_path: Path
) -> None:
    server.bot_name = "Ada"
    ann, channel = server.user("Ann"), server.channel("general")
    async with adapter(server, services, tmp_path):
        await server.say(channel, ann, f"{ME} hello")
        await server.until(lambda: server.sent(channel))
    assert server.sent(channel) == ["You said: hello"]


async def test_a_wrong_token_is_said_in_plain_words(server: DiscordServer, services: Services, tmp_path: Path) -> None:
    async with adapter(server, services, tmp_path, token="wrong") as task:
        with pytest.raises(TokenRefused, match="DISCORD_TOKEN"):
            await task
