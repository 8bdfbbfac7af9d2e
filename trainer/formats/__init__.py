"""Dialogue files as people have them, read into one shape. Owns parsing and its errors, not sampling or tokens.

Each format has one parser; `read_dialogues` recognises a file by its beginning. Files may be gzipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from trainer.formats.dialogue import Choice, DataError, Dialogue, Reading, Rejected, UnknownSpeaker
from trainer.formats.exports import read_telegram, read_whatsapp
from trainer.formats.files import UNREADABLE, open_text, unreadable
from trainer.formats.folder import data_files, read_folder
from trainer.formats.messages import read_chitchat, read_completion, read_messages, read_sharegpt
from trainer.formats.personas_of_two import (
    read_hf_personachat,
    read_named,
    read_parlai,
    read_personachat,
    read_spc,
    read_spc_csv,
)
from trainer.formats.prose import passages, read_corpus, read_dialogue, read_documents
from trainer.formats.sniff import sniff
from trainer.formats.tables import read_csv, read_dialogpt, read_script

__all__ = [
    "PARSERS",
    "PROSE",
    "Choice",
    "DataError",
    "Dialogue",
    "Reading",
    "Rejected",
    "UnknownSpeaker",
    "data_files",
    "open_text",
    "passages",
    "read_dialogues",
    "sniff",
]

# Synthetic-Persona-Chat's generator left these where a name belongs.
PLACEHOLDER = re.compile(r"\[[^\]]*\bname\b[^\]]*\]|\bparticipant_\d", re.IGNORECASE)

PARSERS: dict[str, Callable[[Reading], Iterator[Dialogue]]] = {
    "personachat": read_personachat,
    "spc": read_spc,
    "named": read_named,
    "parlai": read_parlai,
    "spc-csv": read_spc_csv,
    "chitchat": read_chitchat,
    "hf-personachat": read_hf_personachat,
    "messages": read_messages,
    "completion": read_completion,
    "sharegpt": read_sharegpt,
    "csv": read_csv,
    "script": read_script,
    "dialogpt": read_dialogpt,
    "dialogue": read_dialogue,
    "corpus": read_corpus,
    "documents": read_documents,
    "telegram": read_telegram,
    "whatsapp": read_whatsapp,
}
PROSE = ("corpus", "documents")


def read_dialogues(
    path: Path,
    format: str | None = None,
    *,
    speaker: str = "",
    split: str = "train",
    rejected: Rejected | None = None,
) -> Iterator[Dialogue]:
    """Yield the dialogues of `path`; the second speaker is the bot, or `speaker` where people have names.

    `split` is read of a file that holds several. Dialogues with an unfilled name placeholder are left out.
    Raise `DataError` for whatever is not as its format says; with `rejected`, single lines and entries are counted
    there and left out instead.
    """
    chosen = format or sniff(path)
    reading = Reading(path, speaker, split, rejected)
    if chosen not in (*PARSERS, "folder"):
        raise DataError(f"{path}: unknown format {chosen!r}. Known: {', '.join((*PARSERS, 'folder'))}.")
    parse = PARSERS.get(chosen) or partial(read_folder, read=_read_file)
    try:
        for dialogue in parse(reading):
            is_unfilled = chosen not in PROSE and any(PLACEHOLDER.search(turn.text) for turn in dialogue.turns)
            if dialogue.turns and not is_unfilled:
                with reading.rejecting():
                    _check_characters(path, dialogue)
                    yield dialogue
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _read_file(reading: Reading) -> Iterator[Dialogue]:
    return read_dialogues(reading.path, speaker=reading.speaker, split=reading.split, rejected=reading.rejected)


def _check_characters(path: Path, dialogue: Dialogue) -> None:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    try:
        "".join((*dialogue.facts, *dialogue.partner_facts, *(turn.text for turn in dialogue.turns))).encode()
    except UnicodeEncodeError as error:
        around = dialogue.turns[0].text[:40]
        raise DataError(
            f"{path}: expected characters, got half a surrogate pair (\\u{ord(error.object[error.start]):04x}) in the "
            f"dialogue that begins with {around!r}"
        ) from error
