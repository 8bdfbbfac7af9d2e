"""The text of a reply while its tokens come: decoded, cut before a stop string, told in pieces that never change again.

Knows tokens and text. Must not know who reads the pieces.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

# Decoding bytes that are cut off within a character ends in this.
REPLACEMENT_CHARACTER = "\ufffd"


class TextStream:
    """One reply's text. The engine's thread calls `hear` and `end`; another one may read `pieces` meanwhile.

    The pieces put together are the beginning of what `final_text` returns for all tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop_strings = stop_strings
        self._ids: list[int] = []
        self.told = ""
        self._pieces: SimpleQueue[str | None] = SimpleQueue()

    def hear(self, token: int) -> bool:
        """Take the next token; return whether the reply ends here, because a stop string has come."""
        self._ids.append(token)
        text = self._decode(self._ids)
        is_over = self._has_stop(text)
        sure = (
            final_text(text, self._stop_strings) if is_over else readable(without_begun_stop(text, self._stop_strings))
        )
        if sure.startswith(self.told) and len(sure) > len(self.told):
            self._pieces.put(sure[len(self.told) :])
            self.told = sure
        return is_over

    def is_complete(self, ids: Sequence[int]) -> bool:
        """Return whether a stop string has come in a reply of these `ids`, whatever was heard."""
        return self._has_stop(self._decode(ids))

    def end(self, _: object = None) -> None:
        """Say that no further token will come."""
        self._pieces.put(None)

    def pieces(self) -> Iterator[str]:
        """Yield the text as it grows, until `end`."""
        while (piece := self._pieces.get()) is not None:
            yield piece

    def _has_stop(self, text: str) -> bool:
        return any(stop in text for stop in self._stop_strings)


def final_text(text: str, stop_strings: Sequence[str]) -> str:
    """Return what is said of a decoded reply: up to the first stop string, and readable."""
    starts = [start for stop in stop_strings if (start := text.find(stop)) >= 0]
    return readable(text[: min(starts)] if starts else text)


def without_begun_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Return `text` without an end that the next tokens may turn out to be the beginning of a stop string."""
    longest = max(map(len, stop_strings), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stop_strings):
            return text[:-size]
    return text


def readable(text: str) -> str:
    """Return `text` without control characters and without the remains of a character that was cut off."""
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    return kept.strip().rstrip(REPLACEMENT_CHARACTER).rstrip()
