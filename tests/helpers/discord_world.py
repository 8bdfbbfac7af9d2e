"""The world behind the small Discord: one server, its channels, people, what is said, and the payloads of all that.

Knows nothing of sockets; `discord_server` speaks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

BOT_ID = "1000"
MODERATOR = 1 << 4  # manage_channels
EVERYTHING_NEEDED = str((1 << 10) | (1 << 11) | (1 << 16) | (1 << 38))

Object = dict[str, Any]


class Refused(Exception):
    """An error answer of the REST API."""

    def __init__(self, status: int, code: int = 0, message: str = "error", **more: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": code, "message": message, **more}


class DiscordWorld(ABC):
    """One server and private channels. Tests act through it and look at what the bot has written."""

    def __init__(self) -> None:
        self.bot_name = "PersonaBot"
        self.requests: list[tuple[str, str, Object]] = []
        self.channels: dict[str, Object] = {}
        self.messages: dict[str, list[Object]] = {}
        self._ids = itertools.count(1_000_000)
        self._changed = asyncio.Condition()
        self._refusals: list[tuple[str, Refused]] = []
        self._hooks: list[Callable[[str, str, Object], None]] = []
        self.guild = self._id()
        self.role = {"id": self.guild, "name": "@everyone", "permissions": EVERYTHING_NEEDED, **_ROLE}

    # --- the world ---

    @property
    def me(self) -> Object:
        return {"id": BOT_ID, "username": self.bot_name, "bot": True, **_USER}

    def user(self, name: str, **more: Any) -> Object:
        """Make a person."""
        return {"id": self._id(), "username": name.lower(), **_USER, "global_name": name, **more}

    def channel(self, name: str) -> str:
        """Make a text channel in the one guild; to be done before the bot connects."""
        channel = {"id": self._id(), "type": 0, "guild_id": self.guild, "name": name, **_CHANNEL}
        self.channels[channel["id"]] = channel
        self.messages[channel["id"]] = []
        return str(channel["id"])

    def private_channel(self, user: Object) -> str:
        """Open the private channel of a person with the bot."""
        channel = {"id": self._id(), "type": 1, "recipients": [user], "last_message_id": None, "flags": 0}
        self.channels[channel["id"]] = channel
        self.messages[channel["id"]] = []
        return str(channel["id"])

    async def say(self, channel_id: str, user: Object, content: str, *, reply_to: Object | None = None) -> Object:
        """Let a person say something; the text is hidden where Discord hides it from bots without the intent."""
        mentions = [self.me] if f"<@{BOT_ID}>" in content or reply_to else []
        message = self._message(channel_id, user, content, mentions=mentions)
        if reply_to:
            message |= {"type": 19, "message_reference": {"message_id": reply_to["id"], "channel_id": channel_id}}
            message["referenced_message"] = reply_to
        self.messages[channel_id].append(message)
        is_private = self.channels[channel_id]["type"] == 1
        shown = message if is_private or mentions else {**message, "content": ""}
        await self._dispatch("MESSAGE_CREATE", shown | self._member_part(channel_id))
        return message

    async def slash(self, channel_id: str, user: Object, name: str, permissions: int = 0, /, **options: str) -> str:
        """Let a person use a slash command, "persona set" included; returns the interaction's id."""
        first, *rest = name.split()
        given: list[Object] = [{"name": key, "type": 3, "value": value} for key, value in options.items()]
        if rest:
            given = [{"name": rest[0], "type": 1, "options": given}]
        data = {"id": self._id(), "name": first, "type": 1, "options": given}
        interaction: Object = {
            "id": self._id(),
            "application_id": BOT_ID,
            "type": 2,
            "token": f"token-{self._id()}",
            "version": 1,
            "data": data,
            "channel_id": channel_id,
            "channel": self.channels[channel_id],
            "locale": "en-US",
            "entitlements": [],
            "authorizing_integration_owners": {},
            "attachment_size_limit": 10_000_000,
            "app_permissions": EVERYTHING_NEEDED,
        }
        if self.channels[channel_id]["type"] == 1:
            interaction["user"] = user
        else:
            member = {**_MEMBER, "user": user, "permissions": str(int(EVERYTHING_NEEDED) | permissions)}
            interaction |= {"guild_id": self.guild, "guild_locale": "en-US", "member": member}
        await self._dispatch("INTERACTION_CREATE", interaction)
        return str(interaction["id"])

    def refuse_next(self, method_and_path: str, error: Refused, times: int = 1) -> None:
        """Let the next requests fail whose "METHOD path" matches the pattern."""
        self._refusals += [(method_and_path, error)] * times

    def on_request(self, hook: Callable[[str, str, Object], None]) -> None:
        """Call `hook(method, path, body)` before every request is carried out."""
        self._hooks.append(hook)

    # --- what tests look at ---

    def sent(self, channel_id: str) -> list[str]:
        """Return the texts of the bot's messages as they stand now."""
        return [m["content"] for m in self.messages[channel_id] if m["author"]["id"] == BOT_ID]

    def called(self, method: str, pattern: str) -> list[Object]:
        """Return the bodies of the requests whose path matches."""
        return [body for verb, path, body in self.requests if verb == method and re.fullmatch(pattern, path)]

    async def until(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait until a condition holds; it is looked at after every request and 20 times a second."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05), self._changed:
                        await self._changed.wait()

    @abstractmethod
    async def _dispatch(self, name: str, data: Object) -> None:
        """Tell every session of an event; how, knows who speaks the wire's language."""

    # --- payloads ---

    def _id(self) -> str:
        return str((next(self._ids) << 22) + (1 << 50))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _known(self, channel_id: str) -> None:
        if channel_id not in self.channels:
            raise Refused(404, 10003, "Unknown Channel")

    def _own(self, channel_id: str, message_id: str) -> Object:
        self._known(channel_id)
        for message in self.messages[channel_id]:
            if message["id"] == message_id:
                if message["author"]["id"] != BOT_ID:
                    raise Refused(403, 50005, "Cannot edit a message authored by another user")
                return message
        raise Refused(404, 10008, "Unknown Message")

    def _message(
        self, channel_id: str, author: Object, content: str, *, mentions: list[Object] | None = None
    ) -> Object:
        return {
            "id": self._id(),
            "channel_id": channel_id,
            "author": author,
            "content": content,
            "timestamp": now(),
            "mentions": mentions or [],
            **_MESSAGE,
        }

    def _member_part(self, channel_id: str) -> Object:
        return {} if self.channels[channel_id]["type"] == 1 else {"guild_id": self.guild, "member": _MEMBER}

    def _guild(self) -> Object:
        members = [{**_MEMBER, "user": self.me}]
        channels = [channel for channel in self.channels.values() if channel["type"] == 0]
        return {"id": self.guild, "roles": [self.role], "channels": channels, "members": members, **_GUILD}

    def _application(self) -> Object:
        return {
            "id": BOT_ID,
            "name": self.bot_name,
            "icon": None,
            "description": "",
            "bot_public": True,
            "bot_require_code_grant": False,
            "verify_key": "00",
            "flags": 0,
            "owner": self.user("Owner"),
            "team": None,
            "summary": "",
        }


def now() -> str:
    return datetime.now(UTC).isoformat()


_USER: Object = {"discriminator": "0", "avatar": None, "global_name": None, "public_flags": 0}
_MEMBER: Object = {"roles": [], "joined_at": "2026-01-01T00:00:00+00:00", "deaf": False, "mute": False, "flags": 0}
_ROLE: Object = {"color": 0, "hoist": False, "position": 0, "managed": False, "mentionable": False, "flags": 0}
_CHANNEL: Object = {
    "position": 0,
    "permission_overwrites": [],
    "nsfw": False,
    "parent_id": None,
    "topic": None,
    "flags": 0,
}
_MESSAGE: Object = {
    "type": 0,
    "tts": False,
    "mention_everyone": False,
    "mention_roles": [],
    "attachments": [],
    "embeds": [],
    "components": [],
    "pinned": False,
    "edited_timestamp": None,
    "flags": 0,
}
_GUILD: Object = {
    "name": "Test server",
    "owner_id": "1",
    "member_count": 2,
    "large": False,
    "unavailable": False,
    "joined_at": "2026-01-01T00:00:00+00:00",
    "emojis": [],
    "stickers": [],
    "features": [],
    "threads": [],
    "voice_states": [],
    "presences": [],
    "stage_instances": [],
    "guild_scheduled_events": [],
    "soundboard_sounds": [],
    "verification_level": 0,
    "default_message_notifications": 0,
    "explicit_content_filter": 0,
    "mfa_level": 0,
    "nsfw_level": 0,
    "premium_tier": 0,
    "preferred_locale": "en-US",
    "system_channel_flags": 0,
    "afk_timeout": 300,
    "afk_channel_id": None,
    "icon": None,
    "premium_progress_bar_enabled": False,
}
