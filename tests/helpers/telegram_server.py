"""A strict Bot API server for tests: the real wire format in front of a `TelegramWorld`.

It rejects what Telegram rejects and delivers what Telegram delivers (privacy mode included). What a client does against
the rules that Telegram punishes only later, such as writing during flood control, is noted in `violations`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

from aiohttp import web

from tests.helpers.telegram_world import ME, Chat, Object, Refused, TelegramWorld, bad

TOKEN = "123456:TEST-token_of_the_strict_server"
ACTIONS = {"typing", "upload_photo", "record_voice", "upload_voice", "upload_document", "find_location"}
SCOPES = {"default", "all_private_chats", "all_group_chats", "all_chat_administrators", "chat", "chat_member"}


class TelegramServer(TelegramWorld):
    """The server and the world behind it. `async with TelegramServer() as server:`; `server.url` is the base URL."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__()
        self.violations: list[str] = []
        self.commands: dict[str, list[Object]] = {}
        self.answered: dict[str, Object] = {}
        self.is_down = False
        self.max_per_second: float | None = None  # per private chat; None: no automatic flood control
        self.url = ""
        self._port = port
        self._poll = 0
        self._webhook = ""

    async def __aenter__(self) -> TelegramServer:
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    # --- the wire ---

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**20)
        app.router.add_route("*", "/bot{token}/{method}", self._handle)
        return app

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
