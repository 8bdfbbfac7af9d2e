"""What a Telegram message says and to whom: pure functions on python-telegram-bot's objects.

Decides nothing that `addressed` or `commands` decides; sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import telegram
from telegram.constants import ChatType, MessageEntityType
from telegram.error import TelegramError

from bots.addressed import Sighting, utf16_span, without_spans
from bots.command import Attachment, Command
from bots.download import PATIENCE_S, PIECE_BYTES, pieces_of, write_pieces
from bots.typed import read_command
from bots.workshop import ELSEWHERE, UnfitFile
from personas.conversation import Conversation

PLATFORM: Final = "telegram"
_COMMAND: Final = re.compile(r"/(?P<name>\w{1,32})(?:@(?P<bot>\w+))?(?:\s+(?P<rest>.*))?\s*", re.DOTALL | re.ASCII)


@dataclass(frozen=True, slots=True)
class Call:
    """A command as typed; `command` is None for one that we do not have, and `names_us` tells whose it is."""

    name: str
    command: Command | None
    arguments: dict[str, str]
    names_us: bool


def conversation_of(message: telegram.Message) -> Conversation:
    """Return the chat, and the topic if the message really is in one (threads of replies carry an id, too)."""
    is_topic = bool(message.is_topic_message) and message.message_thread_id is not None
    return Conversation(PLATFORM, str(message.chat.id), str(message.message_thread_id) if is_topic else "")


def read_call(text: str, username: str) -> Call | None:
    """Return the command in `text`; None if it is none, or another bot's."""
    match = _COMMAND.fullmatch(text)
    if match is None or (match["bot"] and match["bot"].casefold() != username.casefold()):
        return None
    name, rest = match["name"].casefold(), (match["rest"] or "").strip()
    command, arguments = read_command(name, rest)
    return Call(name, command, arguments, names_us=bool(match["bot"]))


def attachment_of(message: telegram.Message) -> Attachment | None:
    """Return the file that a command came with, or that the message it replies to holds."""
    replied = message.reply_to_message
    document = message.document or (replied.document if replied else None)
    if document is None:
        return None

    async def save(path: Path, max_bytes: int) -> None:
        try:
            file = await document.get_file()
            await write_pieces(_pieces(file.file_path or ""), path, max_bytes)
        except TelegramError as error:
            raise UnfitFile(f"Telegram does not hand that file over ({error.message}). {ELSEWHERE}") from error
        except (httpx.HTTPError, FileNotFoundError, PermissionError):
            # The error itself names the address, which holds the bot's token.
            raise UnfitFile(f"Telegram does not hand that file over. {ELSEWHERE}") from None

    return Attachment(document.file_name or "data", document.file_size or 0, save)


async def _pieces(place: str) -> AsyncIterator[bytes]:
    """Yield a file from its address, or from a path where a Bot API server of one's own keeps it on this machine.

    Not `download_to_drive`, which takes all of it into memory first.
    """
    if not place.startswith(("http://", "https://")):
        async for piece in pieces_of(Path(place)):
            yield piece
        return
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client, client.stream("GET", place) as response:
        response.raise_for_status()
        async for piece in response.aiter_bytes(PIECE_BYTES):
            yield piece


def command_text(message: telegram.Message) -> str:
    """Return where a command may stand: in the text, or in the words beside a file."""
    return message.text or (message.caption if message.document else "") or ""


def is_for_other_bot(text: str, username: str) -> bool:
    """Say whether `text` is a command that names another bot."""
    match = _COMMAND.fullmatch(text)
    return bool(match and match["bot"] and match["bot"].casefold() != username.casefold())


def sighting_of(message: telegram.Message, me: telegram.User) -> Sighting:
    """Return what decides whether the message is for us."""
    return Sighting(
        is_private=message.chat.type == ChatType.PRIVATE,
        mentions_bot=bool(_own_mentions(message, me)),
        replies_to_bot=_replies_to(message, me),
        is_by_program=_is_by_program(message),
        is_service_note=not _text(message) and message.effective_attachment is None,
    )


def text_for_us(message: telegram.Message, me: telegram.User) -> str:
    """Return the text, or the caption of a picture, without our own mention."""
    return without_spans(_text(message), _own_mentions(message, me))


def is_anonymous_admin(message: telegram.Message) -> bool:
    """Say whether an administrator speaks in the name of the group itself."""
    return message.sender_chat is not None and message.sender_chat.id == message.chat.id


def author_of(message: telegram.Message) -> tuple[str, str]:
    """Return the author's id and display name."""
    if is_anonymous_admin(message) or message.from_user is None:
        return str(message.chat.id), message.author_signature or message.chat.title or ""
    return str(message.from_user.id), message.from_user.full_name


def _text(message: telegram.Message) -> str:
    return message.text or message.caption or ""


def _own_mentions(message: telegram.Message, me: telegram.User) -> list[tuple[int, int]]:
    text = _text(message)
    spans = []
    for entity in (*message.entities, *message.caption_entities):
        start, end = utf16_span(text, entity.offset, entity.length)
        is_name = (
            entity.type == MessageEntityType.MENTION and text[start:end].casefold() == f"@{me.username}".casefold()
        )
        if is_name or (entity.user is not None and entity.user.id == me.id):
            spans.append((start, end))
    return spans


def _replies_to(message: telegram.Message, me: telegram.User) -> bool:
    replied = message.reply_to_message
    # In a topic every message "replies" to the note that created the topic.
    if replied is None or replied.from_user is None or replied.forum_topic_created is not None:
        return False
    return replied.from_user.id == me.id


def _is_by_program(message: telegram.Message) -> bool:
    if message.via_bot is not None:
        return True
    if message.from_user is None:
        return True
    return message.from_user.is_bot and not is_anonymous_admin(message)
