"""A retraining from the chat while everybody talks, with real workers: from the file to the model that answers next.

With `pytest -s` it shows how long the crowd's replies took in each part.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from rich.console import Console

from benchmarks.crowd import Crowd
from benchmarks.phases import Course, figures, served, table
from personas.conversation import Role
from personas.registry import Registry, Version
from personas.settings import Settings
from personas.store import ConversationStore
from tests.helpers.discord_files import served_attachments
from tests.helpers.discord_rooms import DiscordRooms, rooms_on_discord
from tests.helpers.retraining import LENIENT, training_worker, write_data
from tests.helpers.telegram_rooms import TelegramRooms, rooms_on_telegram
from tests.helpers.telegram_world import Chat
from tests.helpers.worker_process import wait_until, worker_process
from worker.queue.connection import connect
from worker.queue.job import Job
from worker.queue.jobs import Jobs
from worker.queue.keys import outbox_key

PATIENCE_S = 240.0  # the machine may be busy; a dry run, a training and the gate take some twenty seconds of computing
MAX_ROLLBACK_S = 10.0  # until the worker says that it serves the version before
NUM_PEOPLE = 32
EVERY_S = 4.0  # what a person needs to read a reply and to type the next message


@dataclass
class Shop:
    """The workers' surroundings: a registry in which the tiny model is served as "tiny"."""

    url: str
    home: Path
    registry: Registry
    redis: redis.Redis
    data: bytes

    @property
    def jobs(self) -> Jobs:
        return Jobs(self.redis)

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self.home, redis_url=self.url, default_persona="Rusty")

    def current(self) -> Version:
        return self.registry.version("tiny")

    def job(self) -> Job:
        [job] = self.jobs.newest()
        return job

    def uploads(self) -> list[Path]:
        return list((self.home / "uploads").iterdir())


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
        shop = Shop(redis_server, home, registry, connect(redis_server), data)
        wait_until(lambda: served(shop.jobs), "the worker serves")
        yield shop


@asynccontextmanager
async def crowded(shop: Shop, rooms: TelegramRooms | DiscordRooms, course: Course) -> AsyncIterator[None]:
    """Fill the rooms before what is done in the block, and until the new model has answered everybody.

    Then nobody was left without a reply, or got two, and everybody was also heard while the model was being trained.
    """
    crowd = Crowd(rooms, NUM_PEOPLE, EVERY_S, catches_up=False)
    crowd.arrive()
    course.begin("before")
    async with asyncio.timeout(PATIENCE_S):
        await crowd.all_answered()
    course.begin("dry run")
    yield
    async with asyncio.timeout(PATIENCE_S):
        await crowd.all_answered()
    course.begin("leaving")
    await crowd.leave(PATIENCE_S)
    Console().print(table(figures(crowd, course)))
    assert (crowd.num_dropped, crowd.num_surplus) == (0, 0)
    in_training = next(phase for phase in course.phases if phase.name == "training")
    assert any(said.due + (said.took_s or 0.0) < in_training.ends for said in in_training.during(crowd.said))
    await asyncio.to_thread(check_rooms, shop, rooms, crowd)


def check_rooms(shop: Shop, rooms: TelegramRooms | DiscordRooms, crowd: Crowd) -> None:
    """Compare, message by message, what stands in the rooms with what the bot remembers: a reply to each, in order."""
    said: defaultdict[str, list[str]] = defaultdict(list)
    for each in crowd.said:
        said[each.room].append(each.text)
    platform = rooms.where(crowd.said[0].room).platform
    wait_until(lambda: not shop.redis.xlen(outbox_key(platform)), "every reply is sent and acknowledged")
    store = ConversationStore(shop.redis)
    for room, texts in said.items():
        turns = store.history(rooms.where(room))
        assert [turn.role for turn in turns] == [Role.USER, Role.BOT] * len(texts)
        assert [turn.text for turn in turns if turn.role is Role.USER] == texts
        assert [turn.message_id for turn in turns] == rooms.message_ids(room)


async def test_on_telegram_a_file_becomes_the_model_that_answers_next(shop: Shop) -> None:
    before, course = shop.current(), Course()
    async with rooms_on_telegram(shop.settings, shop.url) as server:
        ann, rob = server.admin, server.user("Rob")
        chat = server.private_chat(ann)
        async with crowded(shop, server, course):
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
            refused = [*server.texts(elsewhere), server.answered.popitem()[1]["text"]]
            assert refused == ["That command is not for you."] * 2
            assert shop.job().state == "proposed"

            following = asyncio.create_task(course.follow(shop.jobs, shop.job().id))
            await server.press(chat, ann, card, "Start")
            await server.until(lambda: server.pictures(chat), PATIENCE_S)
            await server.until(lambda: "after:" in server.texts(chat)[-1], PATIENCE_S)
            shown = chat.messages[card["message_id"]]
            after = shop.current()
            assert f"Promoted: {after.reference} serves the next message." in shown["text"], "the same message"
            edits = [each["text"] for each in server.called("editMessageText")]
            assert any("░" in text or "Judging" in text for text in edits), "it could be watched"
            assert after.digest != before.digest
            assert (after.lineage.by, after.lineage.base) == (f"telegram:{ann['id']}", before.reference)
            assert server.texts(chat)[-1].count("before: ") == 5
            await following
            await serves(server, chat, after)
            await server.say(chat, ann, "hello")
            num_sent = len(server.texts(chat))
            await server.until(lambda: len(server.texts(chat)) > num_sent, PATIENCE_S)

        asked_at = time.monotonic()
        await server.say(chat, ann, "/model rollback tiny")
        await server.until(lambda: served(shop.jobs) == {before.digest}, PATIENCE_S)
        assert time.monotonic() - asked_at < MAX_ROLLBACK_S
        await serves(server, chat, before)
        assert server.violations == []


async def serves(server: TelegramRooms, chat: Chat, version: Version) -> None:
    """Ask for the status until it says that everybody is answered by `version`."""
    wanted = f"{version.reference} ({version.digest}) for everybody"
    num_before = len(server.texts(chat))  # an older answer may have said so, too
    async with asyncio.timeout(PATIENCE_S):
        while True:
            num_sent = len(server.texts(chat))
            await server.say(chat, server.admin, "/status")
            await server.until(lambda num=num_sent: len(server.texts(chat)) > num, PATIENCE_S)
            if any(wanted in text for text in server.texts(chat)[num_before:]):
                return
            await asyncio.sleep(1)


async def test_on_discord_a_file_becomes_the_model_that_answers_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, course = shop.current(), Course()
    async with rooms_on_discord(shop.settings, shop.url) as rooms:
        env, ann = rooms.env, rooms.admin
        rob = rooms.guild.add_member(env.create_user("rob"), roles=[rooms.managers])
        channel = rooms.guild.create_text_channel("workshop")

        def said() -> list[Any]:
            return [message for message in channel.history() if message.author.id == env.bot.user.id]

        async def until(condition: Any) -> None:
            ends = time.monotonic() + PATIENCE_S
            while not condition():
                assert time.monotonic() < ends, [message.content for message in said()]
                await asyncio.sleep(0.1)

        async with crowded(shop, rooms, course):
            data = ("mine.jsonl", shop.data)
            async with served_attachments(env, monkeypatch):
                result = await ann.slash(channel, "retrain start", name="tiny", recipe="quick", file=data)
            assert result.ephemeral
            await until(lambda: any("Start it?" in message.content for message in said()))
            [card] = said()

            # Somebody who may manage this server does not own the machine.
            refused = [await rob.slash(channel, "retrain list"), await rob.click(card, label="Start")]
            assert [each.response.content for each in refused] == ["That command is not for you."] * 2
            assert all(each.ephemeral for each in refused)
            assert await rob.autocomplete(channel, "retrain start", "recipe", "q") == []
            offered = await ann.autocomplete(channel, "retrain start", "recipe", "q")
            assert [choice["value"] for choice in offered] == ["quick"]

            following = asyncio.create_task(course.follow(shop.jobs, shop.job().id))
            await ann.click(card, label="Start")
            await until(lambda: "after:" in said()[-1].content)
            after = shop.current()
            shown = next(message for message in said() if message.id == card.id)
            assert f"Promoted: {after.reference} serves the next message." in shown.content
            edits = [event["content"] for _, name, event in env.backend.transcript if name == "MESSAGE_UPDATE"]
            assert any("░" in text or "Judging" in text for text in edits), "it could be watched"
            assert after.digest != before.digest
            assert any(message.attachments for message in said())
            listed = await ann.slash(channel, "model list")
            assert f"▸ tiny: {after.version} (2 versions)" in listed.response.content
            await following
            ends = time.monotonic() + PATIENCE_S
            while f"({after.digest}) for everybody" not in (await ann.slash(channel, "status")).response.content:
                assert time.monotonic() < ends
                await asyncio.sleep(1)
            num_said = len(said())
            await ann.send(channel, f"<@{env.bot.user.id}> hello")
            await until(lambda: len(said()) > num_said)
