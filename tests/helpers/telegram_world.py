"""The world behind the strict Bot API server: people, chats, what is said in them, and what a bot gets to hear.

Knows nothing of HTTP; `telegram_server` speaks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ME = {"id": 123456, "is_bot": True, "first_name": "PersonaBot", "username": "persona_test_bot"}

Object = dict[str, Any]


class Refused(Exception):
    """An error answer of the Bot API."""

    def __init__(self, code: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.code, self.description, self.parameters = code, description, parameters


def bad(description: str, **parameters: Any) -> Refused:
    return Refused(400, f"Bad Request: {description}", **parameters)


@dataclass
class Chat:
    """A chat as the server knows it."""

    id: int
    type: str
    title: str = ""
    is_forum: bool = False
    members: dict[int, str] = field(default_factory=dict)
    topics: dict[int, Object] = field(default_factory=dict)
    messages: dict[int, Object] = field(default_factory=dict)
    bot_status: str = "member"
    migrated_to: int | None = None
    flood_until: float = 0.0
    sent_at: list[float] = field(default_factory=list)

    def to_dict(self, first_name: str = "") -> Object:
        data: Object = {"id": self.id, "type": self.type}
        data |= {"first_name": first_name or self.title} if self.type == "private" else {"title": self.title}
        return data | ({"is_forum": True} if self.is_forum else {})


class TelegramWorld:
    """Chats and people. Tests act through it and look at what the bot has written."""

    def __init__(self) -> None:
        self.chats: dict[int, Chat] = {}
        self.users: dict[int, Object] = {ME["id"]: dict(ME)}
        self.calls: list[tuple[str, Object]] = []
        self.reads_all_group_messages = False
        self._updates: list[Object] = []
        self._numbers = itertools.count(1)
        self._update_ids = itertools.count(900_000)
        self._changed = asyncio.Condition()
        self._queries: set[str] = set()
        self._refusals: list[tuple[str, Refused]] = []
        self._hooks: list[Callable[[str, Object], None]] = []

    # --- the world: what people do ---

    def user(self, name: str, **more: Any) -> Object:
        """Make a person, or a bot with `is_bot=True`."""
        user = {"id": 5_000 + next(self._numbers), "is_bot": False, "first_name": name, **more}
        self.users[user["id"]] = user
        return user

    def private_chat(self, user: Object) -> Chat:
        """Open the private chat of a person with the bot."""
        chat = Chat(user["id"], "private", user["first_name"], members={user["id"]: "member"})
        return self.chats.setdefault(chat.id, chat)

    def group(self, title: str, *users: Object, is_super: bool = True, is_forum: bool = False) -> Chat:
        """Make a group with the bot in it; the first person is its creator."""
        number = next(self._numbers)
        chat_id = -1_000_000_000_000 - number if is_super else -number
        chat = Chat(chat_id, "supergroup" if is_super else "group", title, is_forum=is_forum)
        chat.members = {user["id"]: "creator" if index == 0 else "member" for index, user in enumerate(users)}
        self.chats[chat_id] = chat
        return chat

    async def topic(self, chat: Chat, user: Object, name: str) -> int:
        """Create a forum topic; its id is that of the note about it."""
        note = await self.say(chat, user, "", forum_topic_created={"name": name, "icon_color": 7322096})
        chat.topics[note["message_id"]] = note
        return int(note["message_id"])

    async def say(
        self,
        chat: Chat,
        user: Object,
        text: str,
        *,
        reply_to: Object | None = None,
        topic: int | None = None,
        **more: Any,
    ) -> Object:
        """Let a person (or program) say something; the bot hears it if Telegram would let it hear."""
        message = self._new_message(chat, user, text, topic, reply_to) | more
        chat.messages[message["message_id"]] = message
        if self._is_heard(chat, user, message):
            await self.update(message=message)
        return message

    async def press(self, chat: Chat, user: Object, message: Object, label: str) -> str:
        """Let a person press the button with that label; returns the query's id."""
        rows = message["reply_markup"]["inline_keyboard"]
        data = next(button["callback_data"] for row in rows for button in row if button["text"] == label)
        query_id = str(77_000_000 + next(self._numbers))
        self._queries.add(query_id)
        shown = {key: value for key, value in chat.messages[message["message_id"]].items()}
        await self.update(
            callback_query={"id": query_id, "from": user, "chat_instance": "1", "data": data, "message": shown}
        )
        return query_id

    async def migrate(self, chat: Chat) -> Chat:
        """Turn a group into a supergroup: a new id, and the old one answers with where it went."""
        new = Chat(-1_000_000_000_000 - next(self._numbers), "supergroup", chat.title, members=chat.members)
        self.chats[new.id] = new
        chat.migrated_to = new.id
        user = self.users[next(iter(chat.members))]
        await self.say(chat, user, "", migrate_to_chat_id=new.id)
        await self.say(new, user, "", migrate_from_chat_id=chat.id)
        return new

    async def update(self, **content: Any) -> None:
        """Queue an update."""
        async with self._changed:
            self._updates.append({"update_id": next(self._update_ids), **content})
            self._changed.notify_all()

    def refuse_next(self, method: str, error: Refused, times: int = 1) -> None:
        """Let the next calls of `method` fail."""
        self._refusals += [(method, error)] * times

    def flood(self, chat: Chat, retry_after: int) -> None:
        """Close the chat for so many seconds: every call until then is a violation."""
        chat.flood_until = time.monotonic() + retry_after

    def on_call(self, hook: Callable[[str, Object], None]) -> None:
        """Call `hook(method, parameters)` before every method is carried out."""
        self._hooks.append(hook)

    # --- the world: what the tests look at ---

    def sent(self, chat: Chat, topic: int | None = None) -> list[Object]:
        """Return the bot's messages in a chat, oldest first, as they stand now."""
        mine = [message for message in chat.messages.values() if message["from"]["id"] == ME["id"]]
        return mine if topic is None else [m for m in mine if m.get("message_thread_id") == topic]

    def texts(self, chat: Chat, topic: int | None = None) -> list[str]:
        """Return the texts of the bot's messages."""
        return [message["text"] for message in self.sent(chat, topic)]

    def called(self, method: str) -> list[Object]:
        """Return the parameters of every call of a method."""
        return [parameters for name, parameters in self.calls if name == method]

    async def until(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until a condition holds; it is looked at after every call and update, and 20 times a second."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05), self._changed:
                        await self._changed.wait()

    @property
    def num_unconfirmed(self) -> int:
        """Return how many updates the bot has not confirmed yet."""
        return len(self._updates)

    # --- messages ---

    def _new_message(self, chat: Chat, user: Object, text: str, topic: int | None, reply_to: Object | None) -> Object:
        message: Object = {
            "message_id": next(self._numbers),
            "date": int(time.time()),
            "chat": chat.to_dict(user["first_name"] if chat.type == "private" else ""),
            "from": user,
        }
        if text:
            message["text"] = text
            if entities := list(_entities(text)):
                message["entities"] = entities
        if topic is not None:
            message |= {"message_thread_id": topic, "is_topic_message": True}
            reply_to = reply_to or chat.topics.get(topic)
        if reply_to is not None:
            message["reply_to_message"] = {k: v for k, v in reply_to.items() if k != "reply_to_message"}
            if topic is None and chat.type == "supergroup":
                message["message_thread_id"] = reply_to["message_id"]  # a reply thread, not a topic
        return message

    def _is_heard(self, chat: Chat, user: Object, message: Object) -> bool:
        """Say what Telegram would deliver: nothing of other bots, in privacy mode only commands, replies, notes."""
        if chat.type == "private":
            return True
        if user["is_bot"] and "sender_chat" not in message:
            return False
        if self.reads_all_group_messages or chat.bot_status == "administrator" or "text" not in message:
            return True
        if message.get("reply_to_message", {}).get("from", {}).get("id") == ME["id"]:
            return True
        match = re.match(r"/\w+(?:@(\w+))?", message["text"])
        return bool(match) and (match[1] or ME["username"]).casefold() == ME["username"].casefold()


def _entities(text: str) -> Iterator[Object]:
    for match in re.finditer(r"(?<![\w/@])(@\w{3,32}|/\w{1,32}(@\w{3,32})?)", text):
        offset = len(text[: match.start()].encode("utf-16-le")) // 2
        kind = "mention" if match[0].startswith("@") else "bot_command"
        yield {"type": kind, "offset": offset, "length": len(match[0].encode("utf-16-le")) // 2}
