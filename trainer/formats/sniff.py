"""Recognises a file's format by its beginning and its name. Knows what formats look like, not how they are read."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from trainer.formats.dialogue import DataError
from trainer.formats.exports import INVISIBLE, STAMP
from trainer.formats.files import UNREADABLE, open_text, unreadable
from trainer.formats.prose import NAMED_LINE
from trainer.formats.tables import WEIGHTED

START_CHARS = 20_000
CARD_FILE = "card.yaml"
PROSE_SUFFIXES = ("", ".txt", ".text", ".md")
PARLAI_LINE = re.compile(r"\d+ (your persona:|partner's persona:|[^\t]*\t).*")
TELEGRAM_CHAT = re.compile(r'"type"\s*:\s*"(\w+_(chat|group|supergroup|channel)|saved_messages)"|"chats"\s*:\s*\{')
# How DiscordChatExporter's files begin.
DISCORD_MARKS = ('"guild"', '"channel"', '"messages"')
# Which columns say it; the first that fits.
TABLES = {
    "spc-csv": {"user 1 personas"},
    "csv": {"context", "response"},
    "script": {"name", "line"},
}
# Which texts near the beginning of a JSON file say it; the first that fits.
JSON_MARKS = (
    ("hf-personachat", ('"personality"', '"utterances"')),
    ("hf-personachat", ('"personality"', '"candidates"')),
    ("chitchat", ('"messages"', '"sender"')),
    ("named", ('"persona1"',)),
    ("sharegpt", ('"conversations"',)),
    ("messages", ('"messages"', '"role"')),
    ("completion", ('"prompt"', '"completion"')),
)


def sniff(path: Path) -> str:
    """Return the format's name; raise `DataError` for an empty, unreadable or unknown file."""
    if path.is_dir():
        return "folder"
    try:
        with open_text(path, errors="replace") as file:
            start = file.read(START_CHARS)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if not start.strip():
        raise DataError(f"{path}: it is empty")
    if "\0" in start:
        raise DataError(f"{path}: expected text, got binary data")
    if start.lstrip()[0] == "{" and all(mark in start for mark in DISCORD_MARKS):
        raise DataError(f"{path}: a Discord export: Discord's Developer Policy forbids training on message content")
    found = _json(start) if start.lstrip()[0] in "{[" else _table(start) or _lines(start)
    if not found and "\n{" in start:  # its first line is broken
        found = _json(start)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not found and suffix.lower() in PROSE_SUFFIXES:
        found = "corpus"
    if not found:
        raise DataError(
            f"{path}: line 1: of no format known here. Expected PersonaChat, messages, ShareGPT or another kind of "
            "JSON, ParlAI text ('1 your persona: ...'), CSV with context,response or name,line, a Telegram or WhatsApp "
            "export, 'Name: text' lines, or prose in a .txt file. Name it with --format if it is one."
        )
    return found


def _json(start: str) -> str | None:
    if TELEGRAM_CHAT.search(start) and ('"messages"' in start or '"chats"' in start):
        return "telegram"
    for name, marks in JSON_MARKS:
        if all(mark in start for mark in marks):
            return name
    if '"turns": [{' in start or '"turns":[{' in start:
        return "spc"
    if '"turns"' in start or '"p1"' in start:
        return "personachat"
    return "documents" if re.search(r'"text"\s*:\s*"', start) else None


def _table(start: str) -> str | None:
    columns = {name.strip().lower() for name in next(csv.reader([start.lstrip().partition("\n")[0]]), [])}
    return next((name for name, wanted in TABLES.items() if wanted <= columns), None)


def _lines(start: str) -> str | None:
    some = [line for line in start.splitlines()[:60] if line.strip()]
    first = some[0]
    context, tab, reply = first.partition("\t")
    if tab and WEIGHTED.fullmatch(context.split(" EOS ")[0]) and WEIGHTED.fullmatch(reply) and "." in first[:3]:
        return "dialogpt"
    if PARLAI_LINE.fullmatch(first):
        return "parlai"
    if STAMP.match(INVISIBLE.sub("", first).replace("\u202f", " ").replace("\u00a0", " ")):
        return "whatsapp"
    if NAMED_LINE.fullmatch(first.strip()) and sum(bool(NAMED_LINE.fullmatch(line.strip())) for line in some) * 2 > len(
        some
    ):
        return "dialogue"
    return None
