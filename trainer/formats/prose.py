"""Plain text: the prose of one voice, and dialogue written as "Name: text"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from personas.conversation import Role, Turn
from trainer.formats.dialogue import DataError, Dialogue, Reading
from trainer.formats.files import dialogues_from, json_lines, lines
from trainer.formats.people import Line, dialogues_of

NAMED_LINE = re.compile(r"([^\s:][^:\n]{0,39}):\s+(\S.*)")
# A line of its own that ends a text: GPT-2's mark, or a form feed.
END_OF_TEXT = re.compile(r"\s*(<\|endoftext\|>|\f)\s*")
# A long text comes in pieces that can be shuffled: about two windows of 512 tokens.
PIECE_CHARS = 4000
PASSAGE_CHARS = 300


def read_corpus(reading: Reading) -> Iterator[Dialogue]:
    """Texts of one voice, each a bot's turn; `<|endoftext|>` or a form feed on its own line parts them.

    A long text comes in pieces, all but the last with the white space they end in: that is how the layout `corpus`
    knows that a text goes on.
    """
    text: list[str] = []
    has_begun = False
    for _, line in lines(reading):
        if END_OF_TEXT.fullmatch(line):
            yield from _piece("".join(text), is_last=True)
            text, has_begun = [], False
            continue
        has_begun = has_begun or bool(line.strip())
        text += [line + "\n"] if has_begun else []
        size = sum(map(len, text))
        if size >= (2 * PIECE_CHARS if line.strip() else PIECE_CHARS):
            yield from _piece("".join(text), is_last=False)
            text = []
    yield from _piece("".join(text), is_last=True)


def read_documents(reading: Reading) -> Iterator[Dialogue]:
    """JSON Lines of `{"text": ...}`, each a text of its own: dreams, e-mails."""

    def build(data: dict[str, Any]) -> Dialogue:
        if not isinstance(data["text"], str):
            raise TypeError(f"expected a text, got {str(data['text'])[:40]!r}")
        return Dialogue((), _turns(data["text"].rstrip()))

    return dialogues_from(reading, json_lines(reading), build, '{"text": text}')


def read_dialogue(reading: Reading) -> Iterator[Dialogue]:
    """Lines of "Name: text"; a line without a name goes on with the one before, an empty one ends the conversation."""
    said: list[Line] = []
    is_first = True
    for number, line in lines(reading):
        found = NAMED_LINE.fullmatch(line.strip())
        if found:
            said.append(Line(found[1].strip(), found[2].strip(), is_first))
            is_first = False
        elif not line.strip():
            is_first = True
        elif said and not is_first:
            last = said.pop()
            said.append(Line(last.name, f"{last.text}\n{line.strip()}", last.is_first))
        else:
            with reading.rejecting():
                raise DataError(f"{reading.path}: line {number}: expected 'Name: text', got {line[:40]!r}")
    return dialogues_of(said, reading, has_default=True)


def passages(text: str) -> list[str]:
    """Cut a text into passages of whole sentences, short enough to be somebody's turn."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        passage = ""
        for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
            if passage and len(passage) + len(sentence) > PASSAGE_CHARS:
                found.append(passage)
                passage = ""
            passage = f"{passage} {sentence}".strip()
        found.append(passage)
    return [passage for passage in found if passage]


def _piece(text: str, *, is_last: bool) -> Iterator[Dialogue]:
    if turns := _turns(text.rstrip() if is_last else text):
        yield Dialogue((), turns)


def _turns(text: str) -> tuple[Turn, ...]:
    return (Turn(Role.BOT, text),) if text.strip() else ()
