"""Who said what, where: the conversation and its turns, as every room passes them around.

Knows nothing of Redis, platforms or models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Role(StrEnum):
    """The speaker's part in the conversation; layouts mark speakers by role, never by position."""

    USER = "user"
    BOT = "bot"


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance. `name` is the speaker's display name, `message_id` the platform's id of it."""

    role: Role
    text: str
    name: str = ""
    author_id: str = ""
    message_id: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return a JSON-ready dictionary without the empty fields."""
        return {key: str(value) for key, value in asdict(self).items() if value != ""}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Rebuild a turn written by `to_dict`; unknown keys are ignored so that older readers survive."""
        return cls(
            role=Role(data["role"]),
            text=data.get("text", ""),
            name=data.get("name", ""),
            author_id=data.get("author_id", ""),
            message_id=data.get("message_id", ""),
        )


@dataclass(frozen=True, slots=True)
class Conversation:
    """One place where people talk: platform, channel or chat, and thread or topic ("" for none)."""

    platform: str
    place: str
    thread: str = ""

    def __str__(self) -> str:
        """Return the id used in Redis keys and task arguments, e.g. `telegram:-100123:7`."""
        return f"{self.platform}:{self.place}" + (f":{self.thread}" if self.thread else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Invert `str`; raise ValueError where `text` has fewer than two or more than three parts."""
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{text!r} is not a conversation id: expected platform:place or platform:place:thread")
        return cls(*parts)
