"""Is this message for the bot, and what does it say once the bot's own mention is gone: decisions on plain data.

Adapters fill in a `Sighting`; nothing here knows a platform's library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DISCORD_MENTION = r"<@!?{bot_id}>"
_AFTER_ADDRESS = re.compile(r"^[,:;!]?\s+|^[,:;!]+")
_ENDS = ("", ".", "!", "?")
_CLOSES_UP = (" ", "\n", ",", ";", ":")


@dataclass(frozen=True, slots=True)
class Sighting:
    """What an adapter saw of a message. `mentions_bot` is the bot itself: not @everyone, not a role it has."""

    is_private: bool = False
    mentions_bot: bool = False
    replies_to_bot: bool = False
    is_by_program: bool = False
    is_service_note: bool = False


def is_addressed(sighting: Sighting) -> bool:
    """Decide whether the bot answers: people only, and only where they turn to it."""
    if sighting.is_by_program or sighting.is_service_note:
        return False
    return sighting.is_private or sighting.mentions_bot or sighting.replies_to_bot


def without_spans(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return `text` without the given (start, end) spans and without the gaps they leave."""
    pieces, position = [], 0
    for start, end in sorted(spans):
        pieces.append(text[position:start])
        position = max(position, end)
    pieces.append(text[position:])
    return _closed_up(pieces)


def without_discord_mention(content: str, bot_id: int) -> str:
    """Return `content` without `<@bot_id>`; mentions of others stay.

    >>> without_discord_mention("<@1>, do you know <@2>?", 1)
    'do you know <@2>?'
    """
    return _closed_up(re.split(_DISCORD_MENTION.format(bot_id=bot_id), content))


def utf16_span(text: str, offset: int, length: int) -> tuple[int, int]:
    """Turn a Telegram entity's offset and length, in UTF-16 units, into a span of characters."""
    data = text.encode("utf-16-le", "surrogatepass")
    start = len(data[: offset * 2].decode("utf-16-le", "replace"))
    return start, start + len(data[offset * 2 : (offset + length) * 2].decode("utf-16-le", "replace"))


def _closed_up(pieces: list[str]) -> str:
    """Join what stood around the mentions: no address at the front, one space instead of two, none before a comma."""
    text = pieces[0]
    for piece in pieces[1:]:
        if not text.strip():
            text = _AFTER_ADDRESS.sub("", piece, count=1)
        elif piece[:1] in _ENDS:
            text = text.rstrip(" ,") + piece
        elif piece[:1] in _CLOSES_UP:
            text = text.rstrip(" ") + piece
        else:
            text += piece
    return text.strip()
