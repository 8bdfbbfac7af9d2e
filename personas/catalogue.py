"""The catalogue: every persona an operator may choose, read from the shipped files and from their own.

Owns finding, reading and looking up persona files. Knows nothing of conversations, models or platforms.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from personas.errors import PersonaFileError, UnknownPersona
from personas.persona import Persona
from personas.yaml_file import Problem, read, validated

__all__ = ["SHIPPED", "Catalogue", "Entry", "PersonaFileError", "UnknownPersona", "load_catalogue"]

SHIPPED = Path(__file__).with_name("catalogue")
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Entry:
    """A persona and the file it stands in."""

    persona: Persona
    file: Path

    @property
    def is_shipped(self) -> bool:
        """Say whether it comes with personabot rather than from the operator."""
        return self.file.parent.resolve() == SHIPPED.resolve()


class Catalogue:
    """Personas by name. Of two with the same name in different folders, the one of the later folder counts."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        by_name = {entry.persona.name.casefold(): entry for entry in entries}
        self._by_name = dict(sorted(by_name.items()))
        self._by_stem = {entry.file.stem.casefold(): entry for entry in by_name.values()}

    @classmethod
    def load(cls, *folders: Path) -> Catalogue:
        """Read every persona file of the folders; raises `PersonaFileError` naming every problem of every file."""
        entries, problems = read_entries(*folders)
        if problems:
            raise PersonaFileError(problems)
        return cls(entries)

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_name.values())

    def names(self) -> list[str]:
        """Return the names in alphabetical order."""
        return [entry.persona.name for entry in self]

    def get(self, name: str) -> Persona:
        """Return the persona of that name, file name, or unmistakable first name; raises `UnknownPersona`."""
        return self.entry(name).persona

    def entry(self, name: str) -> Entry:
        """Return the persona with its file, found as by `get`."""
        wanted = " ".join(name.split()).casefold()
        found = self._by_name.get(wanted) or self._by_stem.get(wanted)
        if found is None:
            first = [entry for key, entry in self._by_name.items() if key.split()[0] == wanted]
            if len(first) != 1:
                raise UnknownPersona(name, self._close_to(wanted))
            found = first[0]
        return found

    def search(self, prefix: str, limit: int = 25) -> list[str]:
        """Return the names a person may be typing: those that begin so, then a word of which does, then the rest."""
        typed = " ".join(prefix.split()).casefold()
        ranked = sorted((rank, key) for key in self._by_name if (rank := _rank(key, typed)) is not None)
        return [self._by_name[key].persona.name for _, key in ranked[:limit]]

    def _close_to(self, wanted: str) -> list[str]:
        """Return up to three names that resemble `wanted` as a whole, in a word, or by the file's name."""
        known: dict[str, list[str]] = {}
        for key, entry in self._by_name.items():
            for spelling in {key, entry.file.stem.casefold(), *key.split()}:
                known.setdefault(spelling, []).append(entry.persona.name)
        near = difflib.get_close_matches(wanted, [word for word in known if len(word) > 2], n=6, cutoff=0.6)
        return list(dict.fromkeys(name for word in near for name in known[word]))[:3]


def load_catalogue(personas_dir: Path | None) -> Catalogue:
    """Return the shipped personas with the operator's own, which may replace shipped ones by their name."""
    return Catalogue.load(SHIPPED, *([personas_dir] if personas_dir else []))


def read_entries(*places: Path) -> tuple[list[Entry], list[Problem]]:
    """Read files and folders; within one folder a name may stand once."""
    entries: list[Entry] = []
    problems: list[Problem] = []
    owners: dict[tuple[Path, str], Path] = {}
    for place in places:
        for file in _files_of(place, problems):
            source = read(file)
            persona = validated(source, Persona)
            problems += source.sorted_problems()
            if persona is None:
                continue
            owner = owners.setdefault((file.parent, persona.name.casefold()), file)
            if owner != file:
                line = source.lines[("name",)]
                problems.append(Problem(str(file), line, "name", f"expected another name, {owner} has this one"))
            else:
                entries.append(Entry(persona, file))
    return entries, problems


def _files_of(place: Path, problems: list[Problem]) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        problems.append(Problem(str(place), 0, "", "expected a persona file, or a folder of them; there is nothing"))
        return []
    return sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))


def _rank(name: str, typed: str) -> int | None:
    if name.startswith(typed):
        return 0
    if any(word.startswith(typed) for word in name.split()):
        return 1
    return 2 if typed in name else None
