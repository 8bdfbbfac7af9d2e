"""A retraining from the chat, with real workers: a file, its dry run, the training, the gate, and the model swapped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import discord
import pytest
import redis
import simcord

from bots.discord.client import PersonaClient
from bots.services import Services
from bots.telegram.app import serve
from personas.registry import Registry, Version
from personas.settings import Settings
from tests.helpers.discord_files import served_attachments
from tests.helpers.retraining import LENIENT, training_worker, write_data
from tests.helpers.telegram_files import TelegramFileServer
from tests.helpers.telegram_server import TOKEN
from tests.helpers.worker_process import worker_process
from worker.queue.connection import connect
from worker.queue.job import Job
from worker.queue.jobs import Jobs
from worker.queue.loaded import loaded_models

PATIENCE_S = 240.0  # the machine may be busy; a dry run, a training and the gate take some twenty seconds of computing
MAX_ROLLBACK_S = 10.0  # until the worker says that it serves the version before


@dataclass
class Shop:
    """The workers' surroundings: a registry in which the tiny model is served as "tiny"."""

    home: Path
    registry: Registry
    redis: redis.Redis
    data: bytes

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.redis)

    def current(self) -> Version:
        return self.registry.version("tiny")

    def job(self) -> Job:
        [job] = self.jobs.newest()
        return job

    def served(self) -> set[str]:
        """Return the digests of what answers for everybody."""
        workers = loaded_models(self.redis).values()
        return {model.digest for models in workers for model in models if model.is_default}

    def uploads(self) -> list[Path]:
        return list((self.home / "uploads").iterdir())

    def settings(self, redis_url: str, **more: Any) -> Settings:
        return Settings(data_dir=self.home, redis_url=redis_url, default_persona="Rusty", **more)


@pytest.fixture
def shop(redis_server: str, home: Path, tiny_model: Path) -> Iterator[Shop]:
    registry = Registry(home / "checkpoints")
    registry.promote(registry.add(tiny_model, "tiny").reference)
    registry.choose("tiny")
    data = write_data(home / "mine.jsonl").read_bytes()
    surroundings = {**LENIENT, "PERSONABOT_DATA_DIR": str(home), "PERSONABOT_DEFAULT_PERSONA": "Rusty"}
    with (
        worker_process(redis_server, tiny_model, **{**surroundings, "PERSONABOT_MODEL": ""}),
        training_worker(redis_server, home, **surroundings),
    ):
        yield Shop(home, registry, connect(redis_server), data)


@pytest.fixture
async def telegram(redis_server: str, shop: Shop) -> AsyncIterator[TelegramFileServer]:
    """The adapter on Telegram, its administrator's id being the first that the server gives away."""
    async with TelegramFileServer() as server:
        ann = server.user("Ann")
        settings = shop.settings(
            redis_server, telegram_token=TOKEN, telegram_api=server.url, admins=f"telegram:{ann['id']}"
        )
        services, stop = Services.open(settings, redis_server), asyncio.Event()
        serving = asyncio.create_task(serve(settings, services, stop))
        yield server
        stop.set()
        await serving
        await services.close()


async def test_on_telegram_a_file_becomes_the_model_that_answers_next(shop: Shop, telegram: TelegramFileServer) -> None:
    server, before = telegram, shop.current()
    ann = next(user for user in server.users.values() if user["first_name"] == "Ann")
    rob, chat = server.user("Rob"), server.private_chat(ann)
    await server.send_file(chat, ann, "../mine.jsonl", shop.data, "/retrain start name=tiny recipe=quick")
    await server.until(lambda: any("Start it?" in text for text in server.texts(chat)), PATIENCE_S)
    [card] = [message for message in server.sent(chat) if "Start it?" in message.get("text", "")]
    assert "40 dialogues, 160 turns" in card["text"]
    assert "licence: CC0 1.0" in card["text"]
    await server.until(lambda: shop.uploads() == [])  # what was read is in the job's folder
    assert "not known yet" in card["text"]

    # A stranger knows the job's id and forges the button; nothing happens, and nothing is said of the job.
    elsewhere = server.private_chat(rob)
    note = await server.say(elsewhere, rob, "/retrain list")
    await server.forge(rob, note, f"retrain confirm|{shop.job().id}")
    await server.until(lambda: len(server.answered) == 1 and server.texts(elsewhere), PATIENCE_S)
    assert [*server.texts(elsewhere), server.answered.popitem()[1]["text"]] == ["That command is not for you."] * 2
    assert shop.job().state == "proposed"

    await server.press(chat, ann, card, "Start")
    await server.until(lambda: server.pictures(chat), PATIENCE_S)
    await server.until(lambda: "after:" in server.texts(chat)[-1], PATIENCE_S)
    shown = chat.messages[card["message_id"]]
    after = shop.current()
    assert f"Promoted: {after.reference} serves the next message." in shown["text"], "the same message to the end"
    assert after.digest != before.digest
    assert (after.lineage.by, after.lineage.base) == (f"telegram:{ann['id']}", before.reference)
    assert server.texts(chat)[-1].count("before: ") == 5
    await serves(server, chat, ann, after)
    await server.say(chat, ann, "hello")
    num_sent = len(server.texts(chat))
    await server.until(lambda: len(server.texts(chat)) > num_sent, PATIENCE_S)

    asked_at = time.monotonic()
    await server.say(chat, ann, "/model rollback tiny")
    await server.until(lambda: shop.served() == {before.digest}, PATIENCE_S)
    assert time.monotonic() - asked_at < MAX_ROLLBACK_S
    await serves(server, chat, ann, before)
    assert server.violations == []


async def serves(server: TelegramFileServer, chat: Any, ann: Any, version: Version) -> None:
    """Ask for the status until it says that everybody is answered by `version`."""
    wanted = f"{version.reference} ({version.digest}) for everybody"
    num_before = len(server.texts(chat))  # an older answer may have said so, too
    async with asyncio.timeout(PATIENCE_S):
        while True:
            num_sent = len(server.texts(chat))
            await server.say(chat, ann, "/status")
            await server.until(lambda num=num_sent: len(server.texts(chat)) > num, PATIENCE_S)
            if any(wanted in text for text in server.texts(chat)[num_before:]):
                return
            await asyncio.sleep(1)


async def test_on_discord_a_file_becomes_the_model_that_answers_next(
    shop: Shop, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shop.current()
    admins: set[str] = set()
    services = replace(Services.open(shop.settings(redis_server), redis_server), admins=admins)
    client = PersonaClient(services)
    env = simcord.Env(client, shard_count=1)
    await env.start()
    speaking = asyncio.gather(client.delivery.run(), client.watch.run())
    guild = env.create_guild()
    role = guild.create_role("Mods", permissions=discord.Permissions(manage_guild=True))
    ann, rob = (guild.add_member(env.create_user(name), roles=[role]) for name in ("ann", "rob"))
    admins.add(f"discord:{ann.id}")
    channel = guild.create_text_channel("workshop")

    def said() -> list[Any]:
        return [message for message in channel.history() if message.author.id == env.bot.user.id]

    async def until(condition: Any) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < ends, [message.content for message in said()]
            await asyncio.sleep(0.1)

    async with served_attachments(env, monkeypatch):
        result = await ann.slash(channel, "retrain start", name="tiny", recipe="quick", file=("mine.jsonl", shop.data))
    assert result.ephemeral
    await until(lambda: any("Start it?" in message.content for message in said()))
    [card] = said()

    # Somebody who may manage this server does not own the machine.
    refused = [await rob.slash(channel, "retrain list"), await rob.click(card, label="Start")]
    assert [each.response.content for each in refused] == ["That command is not for you."] * 2
    assert all(each.ephemeral for each in refused)
    assert await rob.autocomplete(channel, "retrain start", "recipe", "q") == []
    assert [choice["value"] for choice in await ann.autocomplete(channel, "retrain start", "recipe", "q")] == ["quick"]

    await ann.click(card, label="Start")
    await until(lambda: "after:" in said()[-1].content)
    after = shop.current()
    shown = next(message for message in said() if message.id == card.id)
    assert f"Promoted: {after.reference} serves the next message." in shown.content
    assert after.digest != before.digest
    assert any(message.attachments for message in said())
    listed = await ann.slash(channel, "model list")
    assert f"▸ tiny: {after.version} (2 versions)" in listed.response.content
    ends = time.monotonic() + PATIENCE_S
    while f"({after.digest}) for everybody" not in (await ann.slash(channel, "status")).response.content:
        assert time.monotonic() < ends
        await asyncio.sleep(1)
    num_said = len(said())
    await ann.send(channel, f"<@{env.bot.user.id}> hello")
    await until(lambda: len(said()) > num_said)
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    await env.shutdown()
    await services.close()
    env.raise_errors()
