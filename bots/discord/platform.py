"""Discord as a `Platform`: sends, edits and types, and never pings anybody.

Owns what each of Discord's errors means for a delivery. discord.py itself waits out rate limits.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import discord

from bots.delivery import NotEditable, Rows, TryLater, Undeliverable
from bots.discord.buttons import view_of
from bots.speech import Speech, signed_in_markdown
from personas.conversation import Conversation

TYPING_EVERY_S: Final = 8.0  # Discord shows it for 10 s
MAX_NONCE_LENGTH: Final = 25
_NO_HISTORY: Final = 160002  # "cannot reply without permission to read message history"
_NOBODY: Final = discord.AllowedMentions.none()


class DiscordPlatform:
    """One bot's way of writing."""

    max_length = 2000

    def __init__(self, client: discord.Client) -> None:
        self._client = client

    def worded(self, conversation: Conversation, speech: Speech) -> str:
        """Sign the speech with the persona's name unless the bot bears that very name there."""
        return signed_in_markdown(speech, self._shown_as(conversation))

    async def send(
        self, conversation: Conversation, text: str, *, nonce: str = "", reply_to: str = "", buttons: Rows = ()
    ) -> str:
        """Send one message; Discord answers a repeated nonce with the message it has already."""
        more: dict[str, Any] = {"view": view_of(buttons)} if buttons else {}
        if nonce:
            more["nonce"] = nonce[:MAX_NONCE_LENGTH]
        channel = self._channel(conversation)
        with _errors():
            if reply_to:
                try:
                    reference = discord.MessageReference(
                        message_id=int(reply_to), channel_id=channel.id, fail_if_not_exists=False
                    )
                    message = await channel.send(text, allowed_mentions=_NOBODY, reference=reference, **more)
                    return str(message.id)
                except discord.HTTPException as error:
                    if error.code != _NO_HISTORY:
                        raise
            message = await channel.send(text, allowed_mentions=_NOBODY, **more)
        return str(message.id)

    async def edit(
        self, conversation: Conversation, message_id: str, text: str, *, buttons: Rows = (), is_progress: bool = False
    ) -> None:
        """Replace the text and the buttons of one of our messages.

        Progress may come at any time: Discord's limit on edits in a channel is another one than that on messages.
        """
        message = self._channel(conversation).get_partial_message(int(message_id))
        with _errors(is_edit=True):
            await message.edit(content=text, allowed_mentions=_NOBODY, view=view_of(buttons) if buttons else None)

    async def send_picture(self, conversation: Conversation, png: bytes, caption: str, *, nonce: str = "") -> str:
        """Send a picture with a few words and return the message's id."""
        picture = discord.File(io.BytesIO(png), filename="picture.png")
        more: dict[str, Any] = {"nonce": nonce[:MAX_NONCE_LENGTH]} if nonce else {}
        with _errors():
            message = await self._channel(conversation).send(caption, file=picture, allowed_mentions=_NOBODY, **more)
        return str(message.id)

    async def delete(self, conversation: Conversation, message_id: str) -> None:
        """Remove one of our messages."""
        message = self._channel(conversation).get_partial_message(int(message_id))
        with _errors(is_edit=True):
            await message.delete()

    async def show_typing(self, conversation: Conversation) -> None:
        """Show the typing notice for ten seconds."""
        await self._channel(conversation).typing()

    def _channel(self, conversation: Conversation) -> discord.PartialMessageable:
        return self._client.get_partial_messageable(int(conversation.thread or conversation.place))

    def _shown_as(self, conversation: Conversation) -> str:
        channel = self._client.get_channel(int(conversation.place))
        guild = getattr(channel, "guild", None)
        member = guild.me if isinstance(guild, discord.Guild) else None
        shown = member or self._client.user
        return shown.display_name if shown else ""


@contextmanager
def _errors(*, is_edit: bool = False) -> Iterator[None]:
    """Say in a delivery's words what one of Discord's errors means."""
    try:
        yield
    except discord.RateLimited as error:
        raise TryLater("rate limit", error.retry_after) from error
    except discord.DiscordServerError as error:
        raise TryLater(f"Discord answers {error.status}") from error
    except discord.HTTPException as error:
        if error.status in (401, 429):
            raise TryLater(f"Discord answers {error.status}") from error
        raise (NotEditable if is_edit else Undeliverable)(f"{error.status} {error.code}") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TryLater(type(error).__name__) from error
