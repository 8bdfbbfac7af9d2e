"""Splitting a long text into messages a platform accepts: the rule, on plain strings.

Lengths are UTF-16 code units, as Telegram counts; Discord counts no more than that. Nothing but whitespace at a cut is
ever dropped. Knows nothing of the platforms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

MIN_LIMIT = 64  # below this a reopened code fence would leave no room for code
_FENCE = re.compile(r"`{3,}(?:(?P<language>[\w+#.-]{1,20})(?=\n))?")
# From the most to the least welcome place to cut; a cut falls after the match.
_SENTENCE_END = r"[.!?\u2026\u3002\uff01\uff1f]['\"\u2019\u201d)\]]*\s+"
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", _SENTENCE_END, r"\s+"))
_LINE_BREAKS = _BREAKS[:2]
# A break is taken only in the rear part of the window, so that no message is a mere stub.
_REAR = 0.4
_JOINER = "\u200d"
_MAX_CLUSTER = 64  # code points; a longer pile of combining marks is cut like plain text


@dataclass(frozen=True, slots=True)
class Fence:
    """An open code fence: its backticks and its language."""

    marker: str
    language: str = ""

    @property
    def opening(self) -> str:
        """What a continued message starts with."""
        return f"{self.marker}{self.language}\n"

    @property
    def closing(self) -> str:
        """What an interrupted message ends with."""
        return f"\n{self.marker}"


def split(text: str, limit: int) -> list[str]:
    """Return `text` in parts of at most `limit` UTF-16 units, code fences closed and reopened at the cuts."""
    if limit < MIN_LIMIT:
        raise ValueError(f"a limit of {limit} is too small: at least {MIN_LIMIT} are needed")
    rest = _well_formed(text)
    if not rest.strip():
        return []
    parts: list[str] = []
    fence: Fence | None = None
    while rest:
        head = fence.opening if fence else ""
        if utf16_length(head + rest) <= limit:
            cut, after = len(rest), None
        else:
            cut, after = _cut(rest, limit - utf16_length(head), fence)
        part = _trimmed(rest[:cut], starts_in_fence=fence is not None, ends_in_fence=after is not None)
        if part.strip():
            parts.append(head + part + (after.closing if after else ""))
        rest, fence = rest[cut:], after
    return parts


def utf16_length(text: str) -> int:
    """Return the number of UTF-16 code units, the length as Telegram counts it."""
    return len(text) + sum(ord(character) > 0xFFFF for character in text)


def _well_formed(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which no platform would take."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _cut(rest: str, room: int, fence: Fence | None) -> tuple[int, Fence | None]:
    """Return where to cut `rest`, and the fence that is open there; closing it fits into `room` too."""
    cut = _best_break(rest, _num_fitting(rest, room), fence)
    open_fence, opened_at = _fence_at(rest, cut, fence)
    if open_fence is None:
        return cut, None
    if opened_at is not None and opened_at > 0 and not rest[_line_end(rest, opened_at) : cut].strip():
        return opened_at, None  # nothing of the block fits any more: it moves to the next message as a whole
    cut = _best_break(rest, _num_fitting(rest, room - len(open_fence.closing)), fence)
    open_fence, opened_at = _fence_at(rest, cut, fence)
    if opened_at is not None and opened_at > 0 and not rest[_line_end(rest, opened_at) : cut].strip():
        return opened_at, None
    closing = re.compile(rf"\s*{open_fence.marker}(?!`)").match(rest, cut) if open_fence else None
    if closing and utf16_length(rest[: closing.end()]) <= room:
        return closing.end(), None
    return cut, open_fence


def _num_fitting(rest: str, room: int) -> int:
    """Return how many characters fit into `room` units without breaking a cluster; at least one."""
    used = fitting = 0
    for start, end in _clusters(rest):
        used += utf16_length(rest[start:end])
        if used > room:
            break
        fitting = end
    return max(fitting, 1)


def _best_break(rest: str, end: int, fence: Fence | None) -> int:
    """Return the most welcome cut in the rear part of `rest[:end]`, or else `end`."""
    inside = _fence_at(rest, end, fence)[0] is not None
    window = rest[:end]
    for pattern in _LINE_BREAKS if inside else _BREAKS:
        cuts = [m.end() for m in pattern.finditer(window) if m.end() >= end * _REAR]
        if cuts and not (inside and _splits_marker(rest, cuts[-1])):
            return cuts[-1]
    while end > 1 and _splits_marker(rest, end):
        end -= 1
    return end


def _splits_marker(rest: str, cut: int) -> bool:
    return any(m.start() < cut < m.end() for m in _FENCE.finditer(rest, max(0, cut - 64), cut + 64))


def _fence_at(rest: str, cut: int, fence: Fence | None) -> tuple[Fence | None, int | None]:
    """Return the fence open at `cut`, and where in `rest` it was opened (None: before `rest`)."""
    opened_at: int | None = None
    for match in _FENCE.finditer(rest):
        if match.end() > cut:
            break
        if fence is None:
            fence, opened_at = Fence(match[0].rstrip(match["language"] or ""), match["language"] or ""), match.start()
        else:
            fence, opened_at = None, None
    return fence, opened_at


def _line_end(rest: str, start: int) -> int:
    end = rest.find("\n", start)
    return len(rest) if end < 0 else end


def _trimmed(piece: str, *, starts_in_fence: bool, ends_in_fence: bool) -> str:
    """Drop the whitespace at the cuts; inside a code fence only the line break goes, indentation stays."""
    piece = piece.removeprefix("\n") if starts_in_fence else piece.lstrip("\n")
    return piece.removesuffix("\n") if ends_in_fence else piece.rstrip()


def _clusters(text: str) -> Iterator[tuple[int, int]]:
    """Yield what a reader sees as one character: combining marks, emoji sequences and flags stay whole."""
    start = 0
    for index in range(1, len(text) + 1):
        if index == len(text) or index - start >= _MAX_CLUSTER or not _sticks(text, start, index):
            yield start, index
            start = index


def _sticks(text: str, start: int, index: int) -> bool:
    character, before = text[index], text[index - 1]
    if character == "\n" and before == "\r":
        return True
    if character == _JOINER or before == _JOINER or unicodedata.category(character) in ("Mn", "Me", "Mc"):
        return before not in "\r\n"
    if 0x1F3FB <= ord(character) <= 0x1F3FF or 0xE0020 <= ord(character) <= 0xE007F:
        return True  # skin tones and flag tags
    if _is_flag_letter(character) and _is_flag_letter(before):
        return (index - start) % 2 == 1
    return unicodedata.category(character) == "Lo" and 0x1160 <= ord(character) <= 0x11FF  # Hangul vowels and finals


def _is_flag_letter(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF
