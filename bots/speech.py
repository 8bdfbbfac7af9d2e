"""How a persona's words look as a message: the name in front where the platform shows another one, no pings.

Pure functions on strings; splitting is `split`'s, sending the adapters'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PING = re.compile(r"(?<!\w)@(?=\w)")
_MARKDOWN = re.compile(r"([\\*_~`|>#\[\]()])")
# Invisible, and never part of a user name: what stands behind it is no mention any more.
WORD_JOINER = "\u2060"


@dataclass(frozen=True, slots=True)
class Speech:
    """Something said by a persona."""

    persona: str
    text: str


def signed(speech: Speech, shown_as: str) -> str:
    """Return the text with the persona's name in front, unless the platform shows that very name anyway.

    >>> signed(Speech("Ada", "hello"), "PersonaBot")
    'Ada: hello'
    """
    if not speech.persona or _same(speech.persona, shown_as):
        return speech.text
    return f"{speech.persona}:{_gap(speech.text)}{speech.text}"


def signed_in_markdown(speech: Speech, shown_as: str) -> str:
    """Do the same with the name in bold, for platforms that render Markdown."""
    if not speech.persona or _same(speech.persona, shown_as):
        return speech.text
    name = _MARKDOWN.sub(r"\\\1", speech.persona)
    return f"**{name}:**{_gap(speech.text)}{speech.text}"


def without_pings(text: str) -> str:
    """Return `text` so that no `@name` in it is linked to, or notifies, anybody; addresses such as a@b.c stay."""
    return _PING.sub("@" + WORD_JOINER, text)


def _gap(text: str) -> str:
    return "\n" if text.startswith("```") else " "


def _same(persona: str, shown_as: str) -> bool:
    return persona.strip().casefold() == shown_as.strip().casefold()
