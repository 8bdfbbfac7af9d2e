"""A persona's own folder: `card.yaml` says who it is, `data/` holds what it said, in any format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from personas.catalogue import read_entries
from personas.errors import PersonaFileError
from trainer.formats.dialogue import DataError, Dialogue, Reading
from trainer.formats.sniff import CARD_FILE

DATA_FOLDER = "data"


def read_folder(reading: Reading, read: Callable[[Reading], Iterator[Dialogue]]) -> Iterator[Dialogue]:
    """Yield the dialogues of every file in `data/`; the card's name and facts stand in where a file has none."""
    entries, problems = read_entries(reading.path / CARD_FILE)
    if problems:
        raise PersonaFileError(problems)
    persona = entries[0].persona
    for path in data_files(reading.path):
        for dialogue in read(replace(reading, path=path, speaker=reading.speaker or persona.name)):
            has_facts = bool(dialogue.facts) and not dialogue.name
            yield dialogue if has_facts else replace(dialogue, facts=persona.facts, name=persona.name)


def data_files(folder: Path) -> list[Path]:
    """Return the files of a persona folder's `data/` in order; raise `DataError` where there are none."""
    inside = folder / DATA_FOLDER
    files = (
        sorted(p for p in inside.rglob("*") if p.is_file() and not p.name.startswith(".")) if inside.is_dir() else []
    )
    if not files:
        raise DataError(f"{folder}: expected {CARD_FILE} and files of dialogue or text in {DATA_FOLDER}/")
    return files
