"""A strict Bot API server for tests: chats and people on one side, the real wire format on the other.

It rejects what Telegram rejects and delivers what Telegram delivers (privacy mode included). What a client does against
the rules that Telegram punishes only later, such as writing during flood control, is noted in `violations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "123456:TEST-token_of_the_strict_server"
ME = {"id": 123456, "is_bot": True, "first_name": "PersonaBot", "username": "persona_test_bot"}
ACTIONS = {"typing", "upload_photo", "record_voice", "upload_voice", "upload_document", "find_location"}
SCOPES = {"default", "all_private_chats", "all_group_chats", "all_chat_administrators", "chat", "chat_member"}

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


class TelegramServer:
    """The server and the world behind it. `async with TelegramServer() as server:`; `server.url` is the base URL."""

    def __init__(self, *, port: int = 0) -> None:
        self.chats: dict[int, Chat] = {}
        self.users: dict[int, Object] = {ME["id"]: dict(ME)}
        self.calls: list[tuple[str, Object]] = []
        self.violations: list[str] = []
        self.commands: dict[str, list[Object]] = {}
        self.answered: dict[str, Object] = {}
        self.is_down = False
        self.reads_all_group_messages = False
        self.max_per_second: float | None = None  # per private chat; None: no automatic flood control
        self.url = ""
        self._port = port
        self._updates: list[Object] = []
        self._numbers = itertools.count(1)
        self._update_ids = itertools.count(900_000)
        self._changed = asyncio.Condition()
        self._poll = 0
        self._webhook = ""
        self._queries: set[str] = set()
        self._refusals: list[tuple[str, Refused]] = []
        self._hooks: list[Callable[[str, Object], None]] = []

    async def __aenter__(self) -> TelegramServer:
        app = web.Application(client_max_size=2**20)
        app.router.add_route("*", "/bot{token}/{method}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

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

    # --- the wire ---

    async def _handle(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        if self.is_down:
            return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
        try:
            if request.match_info["token"] != TOKEN:
                raise Refused(401, "Unauthorized")
            handler = getattr(self, f"_do_{method.lower()}", None)
            if handler is None:
                raise Refused(404, "Not Found")
            parameters = await _parameters(request)
            self.calls.append((method, parameters))
            for hook in self._hooks:
                hook(method, parameters)
            for index, (name, error) in enumerate(self._refusals):
                if name == method:
                    del self._refusals[index]
                    raise error
            result = handler(parameters)
            if asyncio.iscoroutine(result):
                result = await result
        except Refused as error:
            body: Object = {"ok": False, "error_code": error.code, "description": error.description}
            if error.parameters:
                body["parameters"] = error.parameters
            return web.json_response(body, status=error.code)
        async with self._changed:
            self._changed.notify_all()
        return web.json_response({"ok": True, "result": result})

    def _do_getme(self, _parameters: Object) -> Object:
        return ME | {
            "can_join_groups": True,
            "can_read_all_group_messages": self.reads_all_group_messages,
            "supports_inline_queries": False,
        }

    async def _do_getupdates(self, parameters: Object) -> list[Object]:
        if self._webhook:
            raise Refused(
                409,
                "Conflict: can't use getUpdates method while webhook is active; "
                "use deleteWebhook to delete the webhook first",
            )
        offset, limit = int(parameters.get("offset") or 0), int(parameters.get("limit") or 100)
        self._updates = [update for update in self._updates if update["update_id"] >= offset]
        wanted = parameters.get("allowed_updates") or None
        self._poll += 1
        poll = self._poll
        try:
            async with self._changed:
                self._changed.notify_all()
                async with asyncio.timeout(float(parameters.get("timeout") or 0) + 0.001):
                    await self._changed.wait_for(lambda: self._updates or poll != self._poll)
        except TimeoutError:
            return []
        if poll != self._poll:
            raise Refused(
                409,
                "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running",
            )
        if wanted is not None:
            self._updates = [update for update in self._updates if set(update) & set(wanted)]
        return self._updates[: max(1, min(limit, 100))]

    def _do_setwebhook(self, parameters: Object) -> bool:
        self._webhook = parameters.get("url", "")
        if self._webhook and not self._webhook.startswith("https://"):
            self._webhook = ""
            raise bad("bad webhook: An HTTPS URL must be provided for webhook")
        return True

    def _do_deletewebhook(self, _parameters: Object) -> bool:
        self._webhook = ""
        return True

    def _do_getchat(self, parameters: Object) -> Object:
        chat = self._chat(parameters)
        return chat.to_dict() | {"accent_color_id": 1, "max_reaction_count": 11, "accepted_gift_types": _NO_GIFTS}

    def _do_getchatmember(self, parameters: Object) -> Object:
        chat = self._chat(parameters)
        user_id = int(parameters.get("user_id") or 0)
        if user_id not in self.users:
            raise bad("PARTICIPANT_ID_INVALID")
        status = chat.members.get(user_id, "left")
        member: Object = {"user": self.users[user_id], "status": status}
        if status == "creator":
            member["is_anonymous"] = False
        elif status == "administrator":
            member |= dict.fromkeys(_ADMINISTRATOR_RIGHTS, True)
        return member

    def _do_sendmessage(self, parameters: Object) -> Object:
        chat = self._writable(parameters)
        text = _checked_text(parameters)
        topic = self._checked_topic(chat, parameters)
        reply_to = self._checked_reply(chat, parameters)
        markup = _checked_markup(parameters)
        self._checked_flood(chat)
        message = self._new_message(chat, dict(ME), text, topic, reply_to)
        if markup:
            message["reply_markup"] = markup
        chat.messages[message["message_id"]] = message
        return message

    def _do_sendchataction(self, parameters: Object) -> bool:
        chat = self._writable(parameters)
        if parameters.get("action") not in ACTIONS:
            raise bad("wrong parameter action in request")
        self._checked_topic(chat, parameters)
        self._checked_flood(chat, counts=False)
        return True

    def _do_editmessagetext(self, parameters: Object) -> Object:
        chat = self._writable(parameters)
        message = self._own_message(chat, parameters, "edit")
        text, markup = _checked_text(parameters), _checked_markup(parameters)
        if message["text"] == text and message.get("reply_markup") == markup:
            raise bad(
                "message is not modified: specified new message content and reply markup are exactly the same "
                "as a current content and reply markup of the message"
            )
        self._checked_flood(chat)
        message |= {"text": text, "edit_date": int(time.time())}
        message.pop("reply_markup", None)
        if markup:
            message["reply_markup"] = markup
        return message

    def _do_deletemessage(self, parameters: Object) -> bool:
        chat = self._writable(parameters)
        message = self._own_message(chat, parameters, "delete")
        del chat.messages[message["message_id"]]
        return True

    def _do_answercallbackquery(self, parameters: Object) -> bool:
        query_id = str(parameters.get("callback_query_id"))
        if query_id not in self._queries:
            raise bad("query is too old and response timeout expired or query ID is invalid")
        if len(parameters.get("text") or "") > 200:
            raise bad("MESSAGE_TOO_LONG")
        self._queries.discard(query_id)
        self.answered[query_id] = parameters
        return True

    def _do_setmycommands(self, parameters: Object) -> bool:
        commands, scope = parameters.get("commands"), parameters.get("scope") or {"type": "default"}
        if not isinstance(commands, list) or len(commands) > 100:
            raise bad("can't parse commands: expected an Array of BotCommand")
        for command in commands:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command.get("command", "")):
                raise bad("BOT_COMMAND_INVALID")
            if not 1 <= len(command.get("description", "")) <= 256:
                raise bad("BOT_COMMAND_DESCRIPTION_INVALID")
        if scope.get("type") not in SCOPES:
            raise bad("can't parse BotCommandScope: unsupported type specified")
        self.commands[json.dumps([scope, parameters.get("language_code") or ""])] = commands
        return True

    def _do_getmycommands(self, parameters: Object) -> list[Object]:
        scope = parameters.get("scope") or {"type": "default"}
        return self.commands.get(json.dumps([scope, parameters.get("language_code") or ""]), [])

    def _do_setmessagereaction(self, parameters: Object) -> bool:
        chat = self._writable(parameters)
        if int(parameters.get("message_id") or 0) not in chat.messages:
            raise bad("message to react not found")
        return True

    # --- what is checked ---

    def _chat(self, parameters: Object) -> Chat:
        try:
            chat = self.chats[int(parameters["chat_id"])]
        except (KeyError, ValueError):
            raise bad("chat not found" if parameters.get("chat_id") else "chat_id is empty") from None
        if chat.migrated_to is not None:
            raise bad("group chat was upgraded to a supergroup chat", migrate_to_chat_id=chat.migrated_to)
        return chat

    def _writable(self, parameters: Object) -> Chat:
        chat = self._chat(parameters)
        if chat.bot_status == "blocked":
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if chat.bot_status == "kicked":
            raise Refused(403, f"Forbidden: bot was kicked from the {chat.type} chat")
        return chat

    def _own_message(self, chat: Chat, parameters: Object, verb: str) -> Object:
        message = chat.messages.get(int(parameters.get("message_id") or 0))
        if message is None:
            raise bad(f"message to {verb} not found")
        if message["from"]["id"] != ME["id"]:
            raise bad(f"message can't be {verb}ed".replace("deleteed", "deleted"))
        return message

    @staticmethod
    def _checked_topic(chat: Chat, parameters: Object) -> int | None:
        topic = int(parameters.get("message_thread_id") or 0) or None
        if topic is None:
            return None
        if topic not in chat.topics:
            raise bad("message thread not found")
        if chat.topics[topic].get("is_closed"):
            raise bad("TOPIC_CLOSED")
        return topic

    @staticmethod
    def _checked_reply(chat: Chat, parameters: Object) -> Object | None:
        reply = parameters.get("reply_parameters")
        if not reply:
            return None
        found = chat.messages.get(int(reply["message_id"]))
        if found is None and not reply.get("allow_sending_without_reply"):
            raise bad("message to be replied not found")
        return found

    def _checked_flood(self, chat: Chat, *, counts: bool = True) -> None:
        now = time.monotonic()
        if now < chat.flood_until:
            left = max(1, round(chat.flood_until - now + 0.5))
            if chat.sent_at and chat.sent_at[-1] == -1.0:
                self.violations.append(f"wrote to {chat.id} during flood control")
            chat.sent_at.append(-1.0)
            raise Refused(429, f"Too Many Requests: retry after {left}", retry_after=left)
        chat.sent_at = [at for at in chat.sent_at if at > now - 60]
        if self.max_per_second is not None and counts:
            limit = 20 if chat.id < 0 else 60 * self.max_per_second
            if len(chat.sent_at) >= limit or sum(at > now - 1 for at in chat.sent_at) >= 5:
                chat.flood_until = now + 2
                raise Refused(429, "Too Many Requests: retry after 2", retry_after=2)
        if counts:
            chat.sent_at.append(now)

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


_NO_GIFTS = dict.fromkeys(
    ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels"), False
)
_ADMINISTRATOR_RIGHTS = [
    "can_be_edited",
    "is_anonymous",
    "can_manage_chat",
    "can_delete_messages",
    "can_manage_video_chats",
    "can_restrict_members",
    "can_promote_members",
    "can_change_info",
    "can_invite_users",
    "can_post_stories",
    "can_edit_stories",
    "can_delete_stories",
]


async def _parameters(request: web.Request) -> Object:
    """Read JSON, forms, multipart and the query string; strings that hold JSON objects are parsed, as Telegram does."""
    if request.content_type == "application/json":
        return dict(await request.json())
    values: Object = {**request.query, **(await request.post())}
    for name, value in values.items():
        if isinstance(value, str) and value[:1] in "{[" and name not in ("text", "caption"):
            values[name] = json.loads(value)
    return values


def _checked_text(parameters: Object) -> str:
    text = str(parameters.get("text") or "").strip()
    if not text:
        raise bad("message text is empty")
    if parameters.get("parse_mode") not in (None, "", "HTML", "Markdown", "MarkdownV2"):
        raise bad("unsupported parse_mode")
    if len(text.encode("utf-16-le")) // 2 > 4096:
        raise bad("message is too long")
    return text


def _checked_markup(parameters: Object) -> Object | None:
    markup = parameters.get("reply_markup")
    if not markup:
        return None
    for row in markup.get("inline_keyboard", []):
        for button in row:
            if not button.get("text"):
                raise bad("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
            if not 1 <= len(button.get("callback_data", "").encode()) <= 64:
                raise bad("BUTTON_DATA_INVALID")
    return markup


def _entities(text: str) -> Iterator[Object]:
    for match in re.finditer(r"(?<![\w/@])(@\w{3,32}|/\w{1,32}(@\w{3,32})?)", text):
        offset = len(text[: match.start()].encode("utf-16-le")) // 2
        kind = "mention" if match[0].startswith("@") else "bot_command"
        yield {"type": kind, "offset": offset, "length": len(match[0].encode("utf-16-le")) // 2}
