"""Telegram as a `Platform`: sends, edits and types, in plain text and at a pace Telegram accepts.

Owns what each of Telegram's errors means for a delivery.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import telegram
from telegram.constants import ChatAction, MessageLimit
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, RetryAfter, TelegramError

from bots.delivery import Moved, NoRoom, NotEditable, Rows, TryLater, Undeliverable
from bots.speech import Speech, signed, without_pings
from bots.telegram.pace import Pace
from personas.conversation import Conversation

TYPING_EVERY_S: Final = 4.5  # Telegram shows it for 5 s
_NO_PREVIEW: Final = telegram.LinkPreviewOptions(is_disabled=True)


class TelegramPlatform:
    """One bot's way of writing."""

    max_length = int(MessageLimit.MAX_TEXT_LENGTH)

    def __init__(self, bot: telegram.Bot, pace: Pace | None = None) -> None:
        self._bot = bot
        self._pace = pace or Pace()

    def worded(self, conversation: Conversation, speech: Speech) -> str:
        """Sign the speech with the persona's name unless that is the bot's own; nobody is linked to."""
        return without_pings(signed(speech, self._bot.first_name))

    async def send(
        self, conversation: Conversation, text: str, *, nonce: str = "", reply_to: str = "", buttons: Rows = ()
    ) -> str:
        """Send one message as plain text."""
        chat_id = int(conversation.place)
        await self._pace.take(chat_id)
        with self._errors(conversation):
            message = await self._bot.send_message(
                chat_id,
                text,
                message_thread_id=int(conversation.thread) if conversation.thread else None,
                reply_parameters=_reply(reply_to),
                reply_markup=keyboard(buttons),
                link_preview_options=_NO_PREVIEW,
            )
        return str(message.message_id)

    async def edit(
        self, conversation: Conversation, message_id: str, text: str, *, buttons: Rows = (), is_progress: bool = False
    ) -> None:
        """Replace the text of one of our messages; progress takes only what no message is waiting for."""
        chat_id = int(conversation.place)
        if not is_progress:
            await self._pace.take(chat_id)
        elif not self._pace.try_take(chat_id):
            raise NoRoom("the chat's budget is needed for messages")
        with self._errors(conversation, is_edit=True):
            await self._bot.edit_message_text(
                text,
                chat_id=int(conversation.place),
                message_id=int(message_id),
                reply_markup=keyboard(buttons),
                link_preview_options=_NO_PREVIEW,
            )

    async def send_picture(self, conversation: Conversation, png: bytes, caption: str, *, nonce: str = "") -> str:
        """Send a picture with a few words and return the message's id."""
        chat_id = int(conversation.place)
        await self._pace.take(chat_id)
        with self._errors(conversation):
            message = await self._bot.send_photo(
                chat_id,
                telegram.InputFile(png, filename="picture.png"),
                caption=caption,
                message_thread_id=int(conversation.thread) if conversation.thread else None,
            )
        return str(message.message_id)

    async def delete(self, conversation: Conversation, message_id: str) -> None:
        """Remove one of our messages."""
        await self._pace.take(int(conversation.place))
        with self._errors(conversation, is_edit=True):
            await self._bot.delete_message(int(conversation.place), int(message_id))

    async def show_typing(self, conversation: Conversation) -> None:
        """Show the typing notice, unless the chat's budget is needed for messages."""
        chat_id = int(conversation.place)
        if not self._pace.try_take(chat_id):
            return
        thread = int(conversation.thread) if conversation.thread else None
        try:
            await self._bot.send_chat_action(chat_id, ChatAction.TYPING, message_thread_id=thread)
        except RetryAfter as error:
            self._pace.close_for(chat_id, seconds_of(error))

    @contextmanager
    def _errors(self, conversation: Conversation, *, is_edit: bool = False) -> Iterator[None]:
        """Say in a delivery's words what one of Telegram's errors means."""
        try:
            yield
        except RetryAfter as error:
            seconds = seconds_of(error)
            self._pace.close_for(int(conversation.place), seconds)
            raise TryLater("flood control", seconds) from error
        except ChatMigrated as error:
            raise Moved(Conversation(conversation.platform, str(error.new_chat_id), conversation.thread)) from error
        except Forbidden as error:
            raise Undeliverable(error.message) from error
        except BadRequest as error:
            if "not modified" in error.message.casefold():
                return
            raise (NotEditable if is_edit else Undeliverable)(error.message) from error
        except InvalidToken as error:
            raise TryLater("the token is refused") from error
        except TelegramError as error:
            raise TryLater(f"{type(error).__name__}: {error.message}") from error


def keyboard(rows: Rows) -> telegram.InlineKeyboardMarkup | None:
    """Render buttons as an inline keyboard."""
    if not rows:
        return None
    return telegram.InlineKeyboardMarkup(
        [[telegram.InlineKeyboardButton(button.label, callback_data=button.data) for button in row] for row in rows]
    )


def seconds_of(error: RetryAfter) -> float:
    """Return how long Telegram wants to be left alone."""
    after = error.retry_after
    return after.total_seconds() if isinstance(after, datetime.timedelta) else float(after)


def _reply(message_id: str) -> telegram.ReplyParameters | None:
    return telegram.ReplyParameters(int(message_id), allow_sending_without_reply=True) if message_id else None
