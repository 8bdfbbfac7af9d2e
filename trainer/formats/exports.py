"""Chats as their owners export them from Telegram and WhatsApp; the bot learns the lines of one of the people.

There is no reader for Discord: its Developer Policy forbids training on message content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from trainer.formats.dialogue import DataError, Dialogue, Reading
from trainer.formats.files import built, lines, whole_json
from trainer.formats.people import Line, dialogues_of

TELEGRAM = '{"messages": [{"type": "message", "date", "from", "text"}]} or {"chats": {"list": [...]}}'
# "12/31/23, 9:41 PM - Ann: text" (Android) and "[31.12.23, 21:41:02] Ann: text" (iOS), in the locale's order.
STAMP = re.compile(
    r"\[?(\d{1,4})[./-](\d{1,2})[./-](\d{1,4}),? (\d{1,2})[:.](\d{2})(?:[:.]\d{2})?(?: ?([AaPp])\.?[Mm]\.?)?(?:\] | - )"
)
INVISIBLE = re.compile("[\u200e\u200f\u202a-\u202e\ufeff]")
NOT_SAID = re.compile(
    r"<[^>]*omitted>|<attached: .*>|.* omitted|This message was deleted\.?|You deleted this message\.?|null",
    re.IGNORECASE,
)


def read_telegram(reading: Reading) -> Iterator[Dialogue]:
    """Telegram's `result.json`, of one chat or of all; forwarded and service messages are left out."""
    data = whole_json(reading.path, TELEGRAM)
    said = built(reading.path, "", lambda: [line for chat in _chats(data) for line in _telegram_lines(chat)], TELEGRAM)
    return dialogues_of(said, reading, has_default=False)


def _chats(data: dict[str, Any]) -> list[dict[str, Any]]:
    chats: list[dict[str, Any]] = data["chats"]["list"] if "chats" in data else [data]
    return chats


def _telegram_lines(chat: dict[str, Any]) -> Iterator[Line]:
    is_first = True
    for message in chat["messages"]:
        text = _telegram_text(message.get("text", ""))
        if message.get("type") != "message" or message.get("forwarded_from") or not text or not message.get("from"):
            continue
        yield Line(message["from"], text, is_first, datetime.fromisoformat(message["date"]))
        is_first = False


def _telegram_text(text: Any) -> str:
    if isinstance(text, str):
        return text.strip()
    return "".join(part if isinstance(part, str) else part["text"] for part in text).strip()


def read_whatsapp(reading: Reading) -> Iterator[Dialogue]:
    """WhatsApp's exported text, from Android or iOS; notices and left-out media are no lines of anybody's."""
    stamped: list[tuple[tuple[str, ...], str]] = []
    for number, line in lines(reading):
        plain = INVISIBLE.sub("", line).replace("\u202f", " ").replace("\u00a0", " ")
        found = STAMP.match(plain)
        if found:
            stamped.append((found.groups(default=""), plain[found.end() :]))
        elif stamped:
            groups, text = stamped.pop()
            stamped.append((groups, f"{text}\n{plain}"))
        elif plain.strip():
            with reading.rejecting():
                raise DataError(
                    f"{reading.path}: line {number}: expected '31/12/2023, 21:41 - Name: text', got {line[:40]!r}"
                )
    order = _order([groups for groups, _ in stamped])
    said: list[Line] = []
    for groups, text in stamped:
        name, colon, words = text.partition(": ")
        if colon and "\n" not in name and words.strip() and not NOT_SAID.fullmatch(words.strip()):
            at = built(reading.path, "", lambda groups=groups: _moment(groups, order), "dates in one order")  # type: ignore[misc]
            said.append(Line(name.strip(), words.strip(), at=at))
    return dialogues_of(said, reading, has_default=False)


def _order(stamps: list[tuple[str, ...]]) -> tuple[int, int, int]:
    """Return where year, month and day stand; the file's own numbers tell, and else the day comes first."""
    if any(len(groups[0]) == 4 for groups in stamps):
        return 0, 1, 2
    if any(int(groups[1]) > 12 for groups in stamps):
        return 2, 0, 1
    return 2, 1, 0


def _moment(groups: tuple[str, ...], order: tuple[int, int, int]) -> datetime:
    year, month, day = (int(groups[place]) for place in order)
    hour = int(groups[3])
    if groups[5]:
        hour = hour % 12 + (12 if groups[5] in "Pp" else 0)
    return datetime(year if year > 99 else 2000 + year, month, day, hour, int(groups[4]))  # noqa: DTZ001 gaps only
