"""What becomes of each update: a message into the mailbox, a command or a pressed button answered, a chat moved.

Owns the order of decisions for Telegram; the decisions themselves are `reading`'s, `addressed`'s and `commands`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import redis
import structlog
import telegram
from telegram.constants import ChatMemberStatus, ChatType
from telegram.error import BadRequest, TelegramError

from bots import commands
from bots.addressed import is_addressed
from bots.command import Caller, Command, Permission, Response
from bots.delivery import Delivery, Moved, NotEditable, TryLater, Undeliverable
from bots.intake import Heard, Intake
from bots.services import Services, in_thread
from bots.telegram import reading
from bots.telegram.platform import TelegramPlatform
from bots.typing import Typing
from personas.conversation import Conversation

log = structlog.get_logger(__name__)

_MODERATORS: Final = (ChatMemberStatus.OWNER, ChatMemberStatus.ADMINISTRATOR)
MAX_ALERT_LENGTH: Final = 200


class Updates:
    """Handles the updates of one bot, one after another within a chat."""

    def __init__(
        self,
        bot: telegram.Bot,
        services: Services,
        platform: TelegramPlatform,
        delivery: Delivery,
        typing: Typing,
    ) -> None:
        self._bot = bot
        self._services = services
        self._platform = platform
        self._delivery = delivery
        self._typing = typing
        self._intake = Intake(services, typing)

    async def handle(self, update: telegram.Update) -> None:
        """Handle one update; whatever goes wrong with it is logged and must not stop the next."""
        try:
            if update.message is not None:
                await self._message(update.message)
            elif update.callback_query is not None:
                await self._pressed(update.callback_query)
        except Exception:
            log.exception("update not handled", update_id=update.update_id)

    async def _message(self, message: telegram.Message) -> None:
        if message.migrate_to_chat_id is not None:
            await self._moved(message.chat.id, message.migrate_to_chat_id)
            return
        sighting = reading.sighting_of(message, self._bot.bot)
        if sighting.is_by_program or sighting.is_service_note:
            return
        username = self._bot.username
        call = reading.read_call(reading.command_text(message), username)
        if call is not None:
            if call.command is not None or call.names_us or sighting.is_private:
                await self._called(message, call)
        elif is_addressed(sighting) and not reading.is_for_other_bot(message.text or "", username):
            await self._heard(message, is_group=not sighting.is_private)

    async def _heard(self, message: telegram.Message, *, is_group: bool) -> None:
        conversation = reading.conversation_of(message)
        author_id, author_name = reading.author_of(message)
        text = reading.text_for_us(message, self._bot.bot)
        heard = Heard(conversation, text, author_id, author_name, str(message.message_id), is_group)
        if notice := await self._intake.accept(heard):
            self._delivery.say(conversation, Response(notice), reply_to=heard.message_id if is_group else "")

    async def _called(self, message: telegram.Message, call: reading.Call) -> None:
        conversation = reading.conversation_of(message)
        is_group = message.chat.type != ChatType.PRIVATE
        reply_to = str(message.message_id) if is_group else ""
        if call.command is None:
            unknown = Response(f"There is no command /{call.name}. /help lists what there is.")
            self._delivery.say(conversation, unknown, reply_to=reply_to)
            return
        if not await self._is_first_time(conversation, f"m{message.message_id}"):
            return
        author_id, author_name = reading.author_of(message)
        is_moderator = not is_group or reading.is_anonymous_admin(message)
        if not is_moderator and call.command.permission is Permission.MODERATOR:
            is_moderator = await self._is_moderator(message.chat.id, int(author_id))
        caller = Caller(
            conversation,
            author_id,
            author_name,
            is_moderator,
            is_group,
            call_id=f"m{message.message_id}",
            attachment=reading.attachment_of(message),
        )
        response = await self._run(call.command, caller, call.arguments)
        if not response.is_receipt:
            self._delivery.say(conversation, response, reply_to=reply_to)

    async def _pressed(self, query: telegram.CallbackQuery) -> None:
        found = commands.pressed(query.data or "")
        if found is None or query.message is None:
            await self._answer(query, "This button is out of date.")
            return
        command, arguments = found
        message, chat = query.message, query.message.chat
        conversation = (
            reading.conversation_of(message)
            if isinstance(message, telegram.Message)
            else Conversation(reading.PLATFORM, str(chat.id))
        )
        if not await self._is_first_time(conversation, f"q{query.id}"):
            return
        is_group = chat.type != ChatType.PRIVATE
        user = query.from_user
        is_moderator = not is_group or await self._is_moderator(chat.id, user.id)
        caller = Caller(conversation, str(user.id), user.full_name, is_moderator, is_group, call_id=f"q{query.id}")
        response = await self._run(command, caller, arguments)
        await self._answer_press(query, conversation, response)

    async def _answer_press(
        self, query: telegram.CallbackQuery, conversation: Conversation, response: Response
    ) -> None:
        text = response.text
        if response.replaces and query.message is not None:
            await self._answer(query)
            text = "\n".join(self._delivery.texts(conversation, response)[:1])
            try:
                message_id = str(query.message.message_id)
                await self._platform.edit(conversation, message_id, text, buttons=response.buttons)
            except (NotEditable, Undeliverable, TryLater, Moved) as error:
                log.info("list not turned", conversation=str(conversation), error=str(error))
        elif response.is_private and len(text) <= MAX_ALERT_LENGTH:
            await self._answer(query, text)
        else:
            await self._answer(query)
            self._delivery.say(conversation, response)

    async def _run(self, command: Command, caller: Caller, arguments: Mapping[str, str]) -> Response:
        response = await commands.run(self._services, command, caller, arguments)
        log.info("command", command=command.name, conversation=str(caller.conversation))
        if response.awaits_reply:
            self._typing.start(caller.conversation)
        return response

    async def _answer(self, query: telegram.CallbackQuery, alert: str = "") -> None:
        try:
            await self._bot.answer_callback_query(query.id, text=alert or None, show_alert=bool(alert))
        except BadRequest as error:
            log.debug("button press too old to be answered", error=error.message)
        except TelegramError as error:
            log.info("button press not answered", error=error.message)

    async def _is_moderator(self, chat_id: int, user_id: int) -> bool:
        try:
            member = await self._bot.get_chat_member(chat_id, user_id)
        except TelegramError as error:
            log.warning("membership unknown, treated as none", chat_id=chat_id, error=error.message)
            return False
        return member.status in _MODERATORS

    async def _is_first_time(self, conversation: Conversation, call_id: str) -> bool:
        """Say whether to run a command: updates may come again after a restart. Without Redis: yes, it will say so."""
        try:
            return await self._services.is_first_time(conversation, call_id)
        except redis.RedisError:
            return True

    async def _moved(self, old_id: int, new_id: int) -> None:
        """Take persona and history along when a group becomes a supergroup."""
        old, new = (Conversation(reading.PLATFORM, str(chat_id)) for chat_id in (old_id, new_id))
        await in_thread(self._services.store.move, old, new)
        log.info("group became a supergroup", old=str(old), new=str(new))


def lane_of(update: telegram.Update) -> str:
    """Return what keeps updates in order: the chat they belong to."""
    return str(update.effective_chat.id) if update.effective_chat else "none"


async def settled(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait until the updates of one batch are taken care of, but not for ever."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
