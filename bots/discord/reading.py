"""What a Discord message or interaction says, to whom and from whom: functions on discord.py's objects.

Decides nothing that `addressed` decides; sends nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import aiohttp
import discord

from bots.addressed import Sighting, without_discord_mention
from bots.command import Attachment, Caller
from bots.download import PATIENCE_S, PIECE_BYTES, write_pieces
from bots.workshop import ELSEWHERE, UnfitFile
from personas.conversation import Conversation

PLATFORM: Final = "discord"
_PATIENCE: Final = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE_S, sock_read=PATIENCE_S)
_SPOKEN: Final = (discord.MessageType.default, discord.MessageType.reply)
_USER: Final = re.compile(r"<@!?(\d+)>")
_ROLE: Final = re.compile(r"<@&(\d+)>")
_CHANNEL: Final = re.compile(r"<#(\d+)>")
_EMOJI: Final = re.compile(r"<a?(:\w+:)\d+>")
_COMMAND: Final = re.compile(r"<(/[^:>]+):\d+>")


def conversation_of(channel: object, channel_id: int) -> Conversation:
    """Return the channel; a thread is a conversation of its own within its channel."""
    if isinstance(channel, discord.Thread):
        return Conversation(PLATFORM, str(channel.parent_id), str(channel.id))
    return Conversation(PLATFORM, str(channel_id))


def caller_of(interaction: discord.Interaction[Any]) -> Caller:
    """Return who uses a command or presses a button, and where."""
    is_group = interaction.guild_id is not None
    return Caller(
        conversation_of(interaction.channel, interaction.channel_id or 0),
        author_id=str(interaction.user.id),
        author_name=interaction.user.display_name,
        is_moderator=not is_group or interaction.permissions.manage_channels,
        is_group=is_group,
        call_id=str(interaction.id),
    )


def attachment_of(file: discord.Attachment | None) -> Attachment | None:
    """Return a file that came with a command."""
    if file is None:
        return None

    async def save(path: Path, max_bytes: int) -> None:
        # Not `file.save`, which takes all of it into memory first.
        try:
            async with aiohttp.ClientSession(timeout=_PATIENCE) as session, session.get(file.url) as response:
                response.raise_for_status()
                await write_pieces(response.content.iter_chunked(PIECE_BYTES), path, max_bytes)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnfitFile(f"Discord does not hand that file over. {ELSEWHERE}") from error

    return Attachment(file.filename, file.size, save)


def sighting_of(message: discord.Message, me: discord.ClientUser) -> Sighting:
    """Return what decides whether the message is for us."""
    return Sighting(
        is_private=message.guild is None,
        # Not `mentioned_in`, which @everyone makes true as well.
        mentions_bot=any(user.id == me.id for user in message.mentions),
        replies_to_bot=_replies_to(message, me),
        is_by_program=message.author.bot or message.webhook_id is not None,
        is_service_note=message.type not in _SPOKEN,
    )


def text_for_us(message: discord.Message, me: discord.ClientUser) -> str:
    """Return the text without our own mention, and with names where Discord writes ids."""
    return readable(
        without_discord_mention(message.content, me.id),
        {user.id: user.display_name for user in message.mentions},
        {role.id: role.name for role in message.role_mentions},
        {channel.id: getattr(channel, "name", "") for channel in message.channel_mentions},
    )


def readable(text: str, users: dict[int, str], roles: dict[int, str], channels: dict[int, str]) -> str:
    """Replace Discord's marks for people, roles, channels, commands and emoji by what a person sees.

    >>> readable("<@5> likes <:cat:77>", {5: "Ann"}, {}, {})
    '@Ann likes :cat:'
    """
    text = _USER.sub(lambda match: f"@{users.get(int(match[1]), 'someone')}", text)
    text = _ROLE.sub(lambda match: f"@{roles.get(int(match[1]), 'role')}", text)
    text = _CHANNEL.sub(lambda match: f"#{channels.get(int(match[1]), 'channel')}", text)
    return _COMMAND.sub(r"\1", _EMOJI.sub(r"\1", text))


def is_unreadable_reply(message: discord.Message, sighting: Sighting) -> bool:
    """Say whether Discord kept the text from us: a reply without ping, and no message-content intent."""
    return sighting.replies_to_bot and not sighting.mentions_bot and not sighting.is_private and not message.content


def _replies_to(message: discord.Message, me: discord.ClientUser) -> bool:
    if message.type is not discord.MessageType.reply or message.reference is None:
        return False
    replied = message.reference.resolved
    return isinstance(replied, discord.Message) and replied.author.id == me.id and replied.webhook_id is None
