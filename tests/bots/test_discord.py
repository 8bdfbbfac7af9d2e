"""The Discord client in a simulated Discord, with the real queue and a scripted worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord
from simcord.backend.models import AllowedMentions

from bots.discord.client import PersonaClient
from bots.services import Services
from personas.conversation import Conversation
from personas.settings import Settings
from tests.helpers.answering import Script


@dataclass
class World:
    """A server with a channel, a moderator and a member, and the bot in it."""

    env: Any
    client: PersonaClient
    guild: Any
    channel: Any
    mod: Any
    ann: Any

    async def until(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        ends = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < ends, f"still waiting; said so far: {self.said()}"
            await asyncio.sleep(0.02)

    def said(self, channel: Any = None) -> list[str]:
        messages = (channel or self.channel).history()
        return [message.content for message in messages if message.author.id == self.env.bot.user.id]

    def requests(self, method: str, ending: str) -> list[Any]:
        return [r for r in self.env.http_requests if r.method == method and r.path.endswith(ending)]

    @property
    def me(self) -> str:
        return f"<@{self.env.bot.user.id}>"


@pytest.fixture
async def world(services: Services) -> AsyncIterator[World]:
    client = PersonaClient(services)
    # Not `simcord.run`: pytest-asyncio sets a fixture up and down in two contexts.
    env = simcord.Env(client, shard_count=1)
    await env.start()
    delivering = asyncio.create_task(client.delivery.run())
    guild = env.create_guild()
    role = guild.create_role("Mods", permissions=discord.Permissions(manage_channels=True))
    mod = guild.add_member(env.create_user("mod"), roles=[role])
    ann = guild.add_member(env.create_user("ann", global_name="Ann"))
    yield World(env, client, guild, guild.create_text_channel("general"), mod, ann)
    delivering.cancel()
    await asyncio.gather(delivering, return_exceptions=True)
    await env.shutdown()
    env.raise_errors()


async def test_a_mention_is_answered_by_a_reply_that_pings_nobody(world: World, worker: Script) -> None:
    worker.pause()
    asked = await world.ann.send(world.channel, f"{world.me} hello @everyone")
    await world.until(lambda: world.requests("POST", "/typing"))
    worker.resume()
    await world.until(world.said)
    assert world.said() == ["**Ada:** You said: hello @everyone"]
    [sent] = world.requests("POST", "/messages")
    assert sent.json["allowed_mentions"]["parse"] == []
    assert not sent.json["allowed_mentions"].get("replied_user")
    assert sent.json["message_reference"]["message_id"] == asked.id
    assert sent.json["enforce_nonce"] is True
    assert 1 <= len(sent.json["nonce"]) <= 25
    assert worker.heard[0][1][-1].name == "Ann"


async def test_only_people_who_turn_to_the_bot_itself_are_answered(world: World, worker: Script) -> None:
    other = world.guild.add_member(world.env.create_user("other", bot=True))
    role = world.guild.create_role("Bots")
    webhook = world.guild.create_webhook(world.channel, "Ada")
    await world.ann.send(world.channel, "@everyone hello")
    await world.ann.send(world.channel, f"{role.mention} hello")
    await world.ann.send(world.channel, "hello all")
    await other.send(world.channel, f"{world.me} I am a bot, too")
    await webhook.send(f"{world.me} I am a webhook")
    await world.ann.send(world.channel, f"and you, {world.me}?")
    await world.until(world.said)
    assert world.said() == ["**Ada:** You said: and you?"]
    assert len(worker.heard) == 1


async def test_a_reply_to_the_bot_is_answered_and_one_it_cannot_read_is_explained(world: World, worker: Script) -> None:
    await world.ann.send(world.channel, f"{world.me} one")
    await world.until(world.said)
    await world.ann.send(world.channel, "two", reply_to=world.channel.last_message)
    await world.until(lambda: len(world.said()) == 2)
    assert world.said()[1] == "**Ada:** You said: two"
    before = world.channel.last_message
    world.env.backend.create_message(
        world.channel.id,
        world.ann.id,
        "three",
        reference=world.env.backend.normalize_message_reference(
            world.channel.id, {"channel_id": str(world.channel.id), "message_id": str(before.id)}
        ),
        allowed_mentions=AllowedMentions(replied_user=False),
    )
    await world.until(lambda: len(world.said()) == 3)
    assert "ping" in world.said()[2]


async def test_direct_messages_need_no_mention(world: World, worker: Script) -> None:
    await world.ann.send_dm("hello")
    dm = world.ann.user.dm_channel
    await world.until(lambda: world.said(dm))
    assert world.said(dm) == ["**Ada:** You said: hello"]
    await world.ann.user.slash("persona set", name="Bob")
    await world.until(lambda: len(world.said(dm)) == 3)
    assert world.said(dm)[2] == "**Bob:** Bob here. Fresh bread?"


async def test_a_persona_takes_over_a_channel_and_its_threads(world: World, worker: Script, services: Services) -> None:
    result = await world.mod.slash(world.channel, "persona set", name="Bob")
    assert result.response.content == "Bob takes over here, with a fresh memory."
    await world.until(lambda: "**Bob:** Bob here. Fresh bread?" in world.said())
    thread = world.env.backend.create_thread(world.channel.id, "A thread", world.ann.id)
    await world.env.settle()
    [inside] = world.channel.threads
    await world.ann.send(inside, f"{world.me} hello")
    await world.until(lambda: world.said(inside))
    assert world.said(inside) == ["**Bob:** You said: hello"]
    where = Conversation("discord", str(world.channel.id), str(thread.id))
    assert [turn.text for turn in services.store.history(where)] == ["hello", "You said: hello"]


async def test_only_moderators_change_persona_and_memory(world: World, worker: Script) -> None:
    for name, options in (("persona set", {"name": "Bob"}), ("reset", {})):
        result = await world.ann.slash(world.channel, name, **options)
        assert result.ephemeral
        assert "Only moderators" in result.response.content
    result = await world.mod.slash(world.channel, "reset")
    assert not result.ephemeral
    await world.until(lambda: "**Ada:** Hello, I am Ada." in world.said())


async def test_names_are_suggested_and_listed_with_buttons(world: World, worker: Script) -> None:
    choices = await world.mod.autocomplete(world.channel, "persona set", "name", "b")
    assert [choice["value"] for choice in choices] == ["Bob"]
    listed = await world.mod.slash(world.channel, "persona list")
    assert listed.ephemeral
    assert "Ada: A mathematician" in listed.response.content
    pressed = await world.mod.click(listed.response.message, label="Bob")
    assert "Bob takes over" in pressed.response.content
    shown = await world.ann.slash(world.channel, "persona show")
    assert shown.response.content.startswith("Bob speaks here.")


async def test_help_and_privacy_are_for_the_asker_only(world: World, worker: Script) -> None:
    for name, word in (("help", "/persona set <name>"), ("privacy", "training data")):
        result = await world.ann.slash(world.channel, name)
        assert result.ephemeral
        assert word in result.response.content


async def test_regenerate_replaces_the_reply_in_place(world: World, worker: Script, services: Services) -> None:
    await world.ann.send(world.channel, f"{world.me} hello")
    await world.until(world.said)
    where = Conversation("discord", str(world.channel.id))
    await world.until(lambda: services.store.history(where)[-1].message_id)
    worker.say = lambda persona, turns: "Something else."
    result = await world.ann.slash(world.channel, "regenerate")
    assert result.ephemeral
    await world.until(lambda: "**Ada:** Something else." in world.said())
    assert [turn.text for turn in services.store.history(where)] == ["hello", "Something else."]


async def test_a_long_reply_comes_whole(world: World, worker: Script) -> None:
    code = "\n".join(f"print({number})" for number in range(400))
    worker.say = lambda persona, turns: f"```python\n{code}\n```"
    await world.ann.send(world.channel, f"{world.me} show me")
    await world.until(lambda: "print(399)" in "".join(world.said()))
    assert len(world.said()) == 3
    assert all(text.count("```") == 2 for text in world.said())
    assert len({request.json["nonce"] for request in world.requests("POST", "/messages")}) == 3


async def test_commands_are_registered_once_and_not_after_a_restart(world: World, services: Services) -> None:
    assert len(world.requests("PUT", "/commands")) == 1
    await world.env.restart_bot(PersonaClient(services))
    assert len(world.requests("PUT", "/commands")) == 1


async def test_a_channel_that_is_gone_is_given_up_and_a_failing_server_is_tried_again(
    world: World, worker: Script
) -> None:
    world.env.inject_error("POST", "/channels/*/messages", status=403)
    await world.ann.send(world.channel, f"{world.me} lost")
    await world.until(lambda: world.requests("POST", "/messages"))
    await world.ann.send(world.channel, f"{world.me} kept")
    await world.until(world.said)
    assert world.said() == ["**Ada:** You said: kept"]


async def test_when_redis_is_away_the_person_is_told(services: Services, tmp_path: Path) -> None:
    url = "redis://127.0.0.1:1"
    away = Services.open(Settings(data_dir=tmp_path, redis_url=url), url)
    lonely = replace(away, catalogue=services.catalogue, default_persona="Ada")
    async with simcord.run(PersonaClient(lonely), settle_timeout=20, shard_count=1) as env:
        guild = env.create_guild()
        channel = guild.create_text_channel("general")
        ann = guild.add_member(env.create_user("ann"))
        await ann.send(channel, f"<@{env.bot.user.id}> hello")
        assert "out of reach" in channel.last_message.content
        result = await ann.slash(channel, "persona show")
        assert "cannot reach my memory" in result.response.content
    await away.close()
