"""The Telegram adapter against a strict Bot API server, with the real queue and a scripted worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from bots.services import Services
from bots.telegram.app import serve
from personas.conversation import Conversation, Role
from personas.settings import Settings
from tests.helpers.answering import Script
from tests.helpers.telegram_server import TOKEN, TelegramServer
from tests.helpers.telegram_world import Refused
from worker.queue.message import EntryKind, OutboxEntry

pytestmark = pytest.mark.asyncio


@pytest.fixture
async def server() -> AsyncIterator[TelegramServer]:
    async with TelegramServer() as running:
        yield running


@asynccontextmanager
async def adapter(server: TelegramServer, services: Services, tmp_path: Path) -> AsyncIterator[None]:
    settings = Settings(data_dir=tmp_path, telegram_token=TOKEN, telegram_api=server.url, redis_url="redis://unused")
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, services, stop))
    try:
        await server.until(lambda: task.done() or server.called("getUpdates"))
        yield
    finally:
        stop.set()
        await task


@pytest.fixture
async def running(server: TelegramServer, services: Services, tmp_path: Path) -> AsyncIterator[None]:
    async with adapter(server, services, tmp_path):
        yield


async def test_a_private_message_is_answered_with_the_persona_named(
    server: TelegramServer, worker: Script, running: None
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    worker.pause()
    await server.say(chat, ann, "hello you")
    await server.until(lambda: server.called("sendChatAction"))
    worker.resume()
    await server.until(lambda: server.texts(chat))
    assert server.texts(chat) == ["Ada: You said: hello you"]
    assert server.called("sendChatAction")[0]["action"] == "typing"
    assert worker.heard[0][1][-1].name == "Ann"


async def test_a_message_that_comes_twice_is_answered_once(
    server: TelegramServer, worker: Script, running: None
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    message = await server.say(chat, ann, "hello")
    await server.update(message=message)
    await server.say(chat, ann, "and now?")
    await server.until(lambda: any("and now" in text for text in server.texts(chat)))
    assert [turn.text for turn in worker.heard[-1][1] if turn.role is Role.USER].count("hello") == 1


async def test_in_a_group_only_mentions_replies_and_commands_are_for_the_bot(
    server: TelegramServer, worker: Script, running: None
) -> None:
    server.reads_all_group_messages = True
    ann, rob = server.user("Ann"), server.user("Rob", is_bot=True, username="other_bot")
    group = server.group("Friends", ann)
    await server.say(group, ann, "nobody in particular")
    await server.say(group, ann, "@persona_test_bots is another name")
    await server.say(group, rob, "@persona_test_bot I am a bot, too")
    await server.say(group, ann, "/help@other_bot")
    asked = await server.say(group, ann, "hey @Persona_Test_Bot, how are you?")
    await server.until(lambda: server.texts(group))
    assert server.texts(group) == ["Ada: You said: hey, how are you?"]
    [answer] = server.sent(group)
    assert answer["reply_to_message"]["message_id"] == asked["message_id"]
    await server.say(group, ann, "and you?", reply_to=answer)
    await server.until(lambda: len(server.texts(group)) == 2)
    assert server.texts(group)[1] == "Ada: You said: and you?"


async def test_topics_are_conversations_of_their_own_and_reply_threads_are_not(
    server: TelegramServer, worker: Script, running: None
) -> None:
    server.reads_all_group_messages = True
    ann = server.user("Ann")
    forum = server.group("Forum", ann, is_forum=True)
    cats, dogs = await server.topic(forum, ann, "Cats"), await server.topic(forum, ann, "Dogs")
    await server.say(forum, ann, "@persona_test_bot meow", topic=cats)
    await server.say(forum, ann, "@persona_test_bot woof", topic=dogs)
    await server.say(forum, ann, "@persona_test_bot general")
    await server.say(forum, ann, "not for the bot", topic=dogs)
    await server.until(lambda: len(server.texts(forum)) == 3)
    assert server.texts(forum, cats) == ["Ada: You said: meow"]
    assert server.texts(forum, dogs) == ["Ada: You said: woof"]
    # Where the notice was shown at all: it gives way to messages where a chat's budget is short.
    typing = {call.get("message_thread_id") for call in server.called("sendChatAction")}
    assert typing
    assert typing <= {str(cats), str(dogs), None}
    plain = server.group("Plain", ann)
    first = await server.say(plain, ann, "@persona_test_bot one")
    await server.until(lambda: len(server.texts(plain)) == 1)  # else both may get one reply
    await server.say(plain, ann, "@persona_test_bot two", reply_to=first)
    await server.until(lambda: len(server.texts(plain)) == 2)
    assert worker.heard[-1][1][0].text == "one"


async def test_a_long_reply_comes_whole_in_several_messages(
    server: TelegramServer, worker: Script, running: None
) -> None:
    code = "\n".join(f"print({number})  # 😀" for number in range(600))
    worker.say = lambda persona, turns: f"Look:\n```python\n{code}\n```"
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    await server.say(chat, ann, "show me")
    await server.until(lambda: "print(599)" in "".join(server.texts(chat)))
    assert len(server.texts(chat)) > 2
    assert all(text.count("```") == 2 for text in server.texts(chat))


async def test_nobody_is_pinged_by_what_the_model_says(server: TelegramServer, worker: Script, running: None) -> None:
    worker.say = lambda persona, turns: "ask @someone or a@b.example"
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    await server.say(chat, ann, "who knows?")
    await server.until(lambda: server.sent(chat))
    assert "entities" not in server.sent(chat)[0]
    assert "a@b.example" in server.texts(chat)[0]


async def test_a_persona_takes_over_with_its_greeting_and_an_empty_memory(
    server: TelegramServer, worker: Script, services: Services, running: None
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    await server.say(chat, ann, "hello")
    await server.until(lambda: len(server.texts(chat)) == 1)
    await server.say(chat, ann, "/persona set bob")
    await server.say(chat, ann, "who are you?")
    await server.until(lambda: len(server.texts(chat)) == 3)
    assert server.texts(chat)[1:] == [
        "Bob takes over here, with a fresh memory.\n\nBob: Bob here. Fresh bread?",
        "Bob: You said: who are you?",
    ]
    history = services.store.history(Conversation("telegram", str(chat.id)))
    assert [turn.text for turn in history] == ["Bob here. Fresh bread?", "who are you?", "You said: who are you?"]


async def test_only_administrators_change_the_persona_of_a_group(
    server: TelegramServer, worker: Script, services: Services, running: None
) -> None:
    boss, ann = server.user("Boss"), server.user("Ann")
    group = server.group("Friends", boss, ann)
    await server.say(group, ann, "/persona@persona_test_bot set Bob")
    await server.until(lambda: len(server.texts(group)) == 1)
    assert "Only moderators" in server.texts(group)[0]
    await server.say(group, ann, "/persona list")
    await server.until(lambda: len(server.texts(group)) == 2)
    listed = server.sent(group)[1]
    query = await server.press(group, ann, listed, "Bob")
    await server.until(lambda: query in server.answered)
    assert "Only moderators" in server.answered[query]["text"]
    await server.press(group, boss, listed, "Bob")
    await server.until(lambda: len(server.texts(group)) == 3)
    assert services.store.settings(Conversation("telegram", str(group.id))).persona == "Bob"
    anonymous = server.user("Group", is_bot=True, username="GroupAnonymousBot")
    await server.say(group, anonymous, "/reset", sender_chat=group.to_dict())
    await server.until(lambda: len(server.texts(group)) == 4)
    assert "Forgotten" in server.texts(group)[3]


async def test_regenerate_replaces_the_last_reply_in_place(
    server: TelegramServer, worker: Script, services: Services, running: None
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    await server.say(chat, ann, "hello")
    await server.until(lambda: server.texts(chat) == ["Ada: You said: hello"])
    conversation = Conversation("telegram", str(chat.id))
    await server.until(lambda: services.store.history(conversation)[-1].message_id)  # noted after it was sent
    worker.say = lambda persona, turns: "Something else entirely."
    await server.say(chat, ann, "/regenerate")
    await server.until(lambda: server.texts(chat) == ["Ada: Something else entirely."])
    history = services.store.history(conversation)
    assert [turn.text for turn in history] == ["hello", "Something else entirely."]


async def test_flood_control_is_waited_out_and_other_chats_go_on(
    server: TelegramServer, worker: Script, running: None
) -> None:
    ann, ben = server.user("Ann"), server.user("Ben")
    flooded, free = server.private_chat(ann), server.private_chat(ben)
    worker.pause()
    await server.say(flooded, ann, "one")
    await server.until(lambda: server.called("sendChatAction"))
    server.flood(flooded, 2)
    worker.resume()
    await server.until(lambda: any(call["chat_id"] == str(ann["id"]) for call in server.called("sendMessage")))
    await server.say(free, ben, "two")
    await server.until(lambda: server.texts(free))
    assert not server.texts(flooded)
    await server.until(lambda: server.texts(flooded))
    assert server.violations == []


async def test_a_blocked_chat_is_given_up_and_a_busy_server_is_not(
    server: TelegramServer, worker: Script, redis_client: redis.Redis, running: None
) -> None:
    ann, ben = server.user("Ann"), server.user("Ben")
    blocked, busy = server.private_chat(ann), server.private_chat(ben)
    blocked.bot_status = "blocked"
    await server.say(blocked, ann, "anybody?")
    await server.until(lambda: server.called("sendMessage"))
    server.refuse_next("sendMessage", Refused(502, "Bad Gateway"))
    await server.say(busy, ben, "hello")
    await server.until(lambda: server.texts(busy))
    await server.until(lambda: not redis_client.xlen("outbox:telegram"))
    assert not server.texts(blocked)


async def test_a_group_that_becomes_a_supergroup_keeps_persona_and_history(
    server: TelegramServer, worker: Script, services: Services, running: None
) -> None:
    boss = server.user("Boss")
    group = server.group("Friends", boss, is_super=False)
    await server.say(group, boss, "/persona set Bob")
    await server.until(lambda: server.texts(group))
    new = await server.migrate(group)
    await server.say(new, boss, "/persona")
    await server.until(lambda: server.texts(new))
    assert server.texts(new)[0].startswith("Bob speaks here.")
    history = services.store.history(Conversation("telegram", str(new.id)))
    assert [turn.text for turn in history] == ["Bob here. Fresh bread?"]


async def test_a_reply_for_a_group_that_has_moved_follows_it(
    server: TelegramServer, worker: Script, running: None
) -> None:
    boss = server.user("Boss")
    group = server.group("Friends", boss, is_super=False)
    worker.pause()
    await server.say(group, boss, "/help")
    await server.until(lambda: server.sent(group))
    await server.say(group, boss, "still there?", reply_to=server.sent(group)[0])
    await server.until(lambda: server.num_unconfirmed == 0)
    new = await server.migrate(group)
    worker.resume()
    await server.until(lambda: server.texts(new))
    assert server.texts(new) == ["Ada: You said: still there?"]


async def test_what_was_pending_is_delivered_first_after_a_restart(
    server: TelegramServer, services: Services, tmp_path: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    where = Conversation("telegram", str(chat.id))
    for number in range(3):
        entry = OutboxEntry(where, EntryKind.REPLY, f"reply {number}", persona="Ada")
        await services.redis.xadd("outbox:telegram", {"entry": entry.to_json()})
    async with adapter(server, services, tmp_path):
        await server.until(lambda: len(server.texts(chat)) == 3)
    assert server.texts(chat) == ["Ada: reply 0", "Ada: reply 1", "Ada: reply 2"]


async def test_commands_are_registered_once(server: TelegramServer, services: Services, tmp_path: Path) -> None:
    for _ in range(2):
        async with adapter(server, services, tmp_path):
            pass
    assert len(server.called("setMyCommands")) == 1
    [commands] = server.commands.values()
    assert [command["command"] for command in commands] == ["persona", "reset", "regenerate", "help", "privacy"]


async def test_updates_are_confirmed_only_when_they_are_in_the_mailbox(
    server: TelegramServer, services: Services, redis_client: redis.Redis, tmp_path: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    where = Conversation("telegram", str(chat.id))
    unconfirmed_at_poll = []

    def look(method: str, parameters: dict[str, object]) -> None:
        if method == "getUpdates" and parameters.get("offset"):
            unconfirmed_at_poll.append(redis_client.llen(f"mailbox:{where}"))

    server.on_call(look)
    async with adapter(server, services, tmp_path):
        await server.say(chat, ann, "keep this")
        await server.until(lambda: server.num_unconfirmed == 0)
    assert unconfirmed_at_poll[0] == 1


async def test_a_picture_without_words_is_told_that_only_text_is_read(
    server: TelegramServer, worker: Script, running: None
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    picture = [{"file_id": "f", "file_unique_id": "u", "width": 1, "height": 1}]
    await server.say(chat, ann, "", photo=picture)
    await server.until(lambda: server.texts(chat))
    assert "only read text" in server.texts(chat)[0]


async def test_start_greets_and_help_and_privacy_explain(server: TelegramServer, worker: Script, running: None) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    for text in ("/start", "/help", "/privacy", "/nonsense"):
        await server.say(chat, ann, text)
    await server.until(lambda: len(server.texts(chat)) == 4)
    start, help_text, privacy, unknown = server.texts(chat)
    assert "Hello, I am Ada." in start
    assert "/persona set <name>" in help_text
    assert "training data" in privacy
    assert "/nonsense" in unknown


async def test_when_redis_is_away_the_person_is_told(
    server: TelegramServer, services: Services, tmp_path: Path
) -> None:
    ann = server.user("Ann")
    chat = server.private_chat(ann)
    away = Services.open(Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1"), "redis://127.0.0.1:1")
    lonely = replace(away, catalogue=services.catalogue, default_persona="Ada")
    async with adapter(server, lonely, tmp_path):
        await server.say(chat, ann, "hello")
        await server.say(chat, ann, "/persona")
        await server.until(lambda: len(server.texts(chat)) == 2)
    assert "out of reach" in server.texts(chat)[0]
    assert "cannot reach my memory" in server.texts(chat)[1]
    await away.close()
