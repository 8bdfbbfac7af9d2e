"""Fifty conversations at once on both platforms: a real server, a real worker process with a real model, real adapters.

Telegram is a process against the strict server, Discord a client in the simulation. Every conversation has its own
persona, and order, persona and history are right in every one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import discord
import redis
import simcord

from bots.discord.client import PersonaClient
from bots.services import Services
from personas.conversation import Conversation, Role
from personas.settings import Settings
from personas.store import ConversationStore
from tests.helpers.adapter_process import adapter_process
from tests.helpers.telegram_server import TOKEN, TelegramServer
from tests.helpers.worker_process import worker_process

NUM_EACH = 25
PATIENCE_S = 300.0  # on a busy machine; all is said and done in seconds on a quiet one
ROUNDS = (("Hello, who are you?",), ("What do you do all day?", "And do you like it?"), ("Good bye!",))


@dataclass
class Talk:
    """One conversation: who speaks in it, how to talk in it, and what the bot has said."""

    persona: str
    where: Conversation
    said: Callable[[], list[str]]
    signature: str
    sent: list[str] = field(default_factory=list)


def write_personas(folder: Path) -> list[str]:
    folder.mkdir()
    names = [f"Number{index:02}" for index in range(2 * NUM_EACH)]
    for name in names:
        text = f"name: {name}\nfacts: [My name is {name}.]\ngreeting: I am {name}.\n"
        (folder / f"{name.lower()}.yaml").write_text(text, encoding="utf-8")
    return names


async def until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, f"waited in vain until {what}"
        await asyncio.sleep(0.1)


def num_answered(store: ConversationStore, talk: Talk) -> int:
    """Return how many of the user's turns are followed by an answer of the bot."""
    turns = store.history(talk.where)
    last_bot = max((index for index, turn in enumerate(turns) if turn.role is Role.BOT), default=-1)
    return sum(turn.role is Role.USER for turn in turns[:last_bot])


def check(store: ConversationStore, talk: Talk) -> None:
    """Order, persona and history of one conversation."""
    turns = store.history(talk.where)
    assert [turn.text for turn in turns if turn.role is Role.USER] == talk.sent
    assert {turn.name for turn in turns if turn.role is Role.BOT} == {talk.persona}
    spoken = [f"{talk.signature} {turn.text}" for turn in turns if turn.role is Role.BOT]
    heard = [text[text.index(talk.signature) :] for text in talk.said() if talk.signature in text]
    assert [text.strip() for text in heard] == [text.strip() for text in spoken]
    assert len(talk.said()) in (len(spoken), len(spoken) + 1)  # on Discord the take-over is a message of its own


async def test_fifty_conversations_at_once_keep_order_persona_and_history(
    redis_server: str, redis_client: redis.Redis, model: Path, tmp_path: Path, home: Path
) -> None:
    names = write_personas(tmp_path / "personas")
    shared = {"REDIS_URL": redis_server, "PERSONABOT_PERSONAS_DIR": str(tmp_path / "personas")}
    store = ConversationStore(redis_client)
    settings = Settings(
        data_dir=home, redis_url=redis_server, personas_dir=tmp_path / "personas", reply_deadline_s=PATIENCE_S
    )
    services = Services.open(settings, redis_server)
    async with TelegramServer() as server:
        telegram = {**shared, "TELEGRAM_TOKEN": TOKEN, "PERSONABOT_TELEGRAM_API": server.url}
        telegram["PERSONABOT_REPLY_DEADLINE_S"] = str(PATIENCE_S)
        with (
            worker_process(redis_server, model, PERSONABOT_PERSONAS_DIR=shared["PERSONABOT_PERSONAS_DIR"]),
            adapter_process("telegram", home, **telegram),
        ):
            async with simcord.run(PersonaClient(services), shard_count=1) as env:
                delivering = asyncio.create_task(env.bot.delivery.run())
                discord_talks = await begin_on_discord(env, names[:NUM_EACH])
                telegram_talks = await begin_on_telegram(server, names[NUM_EACH:])
                talks = [talk for talk, _ in discord_talks + telegram_talks]
                await until(lambda: all(talk.said() for talk in talks), "every persona has greeted")
                for lines in ROUNDS:
                    for line in lines:
                        for talk, say in discord_talks + telegram_talks:
                            text = f"{line} ({talk.persona})"
                            talk.sent.append(text)
                            await say(text)
                    await until(
                        lambda: all(num_answered(store, talk) == len(talk.sent) for talk in talks), "all are answered"
                    )
                await until(lambda: not any(redis_client.xlen(f"outbox:{p}") for p in ("discord", "telegram")), "sent")
                for talk in talks:
                    check(store, talk)
                delivering.cancel()
                await asyncio.gather(delivering, return_exceptions=True)
    await services.close()
    assert server.violations == []


async def begin_on_discord(env: Any, names: list[str]) -> list[tuple[Talk, Callable[[str], Any]]]:
    """Open a channel for every persona and let it take over."""
    guild = env.create_guild()
    role = guild.create_role("Mods", permissions=discord.Permissions(manage_channels=True))
    mod = guild.add_member(env.create_user("mod"), roles=[role])
    talks = []
    for name in names:
        channel = guild.create_text_channel(name.lower())
        await mod.slash(channel, "persona set", name=name)

        def said(channel: Any = channel) -> list[str]:
            return [m.content for m in channel.history() if m.author.id == env.bot.user.id]

        async def say(text: str, channel: Any = channel) -> None:
            await mod.send(channel, f"<@{env.bot.user.id}> {text}")

        where = Conversation("discord", str(channel.id))
        talks.append((Talk(name, where, said, f"**{name}:**"), say))
    return talks


async def begin_on_telegram(server: TelegramServer, names: list[str]) -> list[tuple[Talk, Callable[[str], Any]]]:
    """Open private chats and a few topics for the personas and let them take over."""
    server.reads_all_group_messages = True
    talks = []
    for index, name in enumerate(names):
        ann = server.user(f"Ann {name}")
        chat = server.private_chat(ann) if index % 5 else server.group(name, ann, is_forum=True)
        topic = await server.topic(chat, ann, name) if chat.is_forum else None
        await server.say(chat, ann, f"/persona set {name}", topic=topic)

        def said(chat: Any = chat) -> list[str]:
            return server.texts(chat)

        async def say(text: str, chat: Any = chat, ann: Any = ann, topic: int | None = topic) -> None:
            await server.say(chat, ann, f"@persona_test_bot {text}" if topic else text, topic=topic)

        where = Conversation("telegram", str(chat.id), str(topic) if topic else "")
        talks.append((Talk(name, where, said, f"{name}:"), say))
    return talks
