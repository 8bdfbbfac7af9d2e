"""Text and JSON out of files, gzipped or not, with the place of whatever is wrong. Knows no dialogue format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainer.formats.dialogue import DataError, Dialogue, Reading

T = TypeVar("T")
# Longer than any dialogue anybody has on one line, short enough to say so before memory runs out.
MAX_LINE_CHARS = 8_000_000
# How Python spells bytes that are not UTF-8 in a text read with "surrogateescape".
NOT_UTF8 = re.compile("[\udc80-\udcff]")
# What a file that is not UTF-8, not gzip or cut short makes Python raise.
UNREADABLE = (OSError, UnicodeDecodeError, EOFError, zlib.error)


def open_text(path: Path, *, errors: str = "strict") -> io.TextIOBase:
    """Open a UTF-8 text file, gzipped or not, with or without a byte order mark; `errors` as for `open`."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors=errors, newline=None)
    return path.open(encoding="utf-8-sig", errors=errors)


def unreadable(path: Path, error: BaseException) -> DataError:
    """Say why a file cannot be read, for bytes that are not UTF-8 with their line."""
    if not isinstance(error, UnicodeDecodeError):
        return DataError(f"{path}: cannot be read: {error}")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return _not_utf8(path, number, line[wrong.start])
    return DataError(f"{path}: cannot be read: {error}")


def lines(reading: Reading) -> Iterator[tuple[int, str]]:
    """Yield the lines without their ends, numbered from 1; what is not UTF-8 is rejected."""
    path = reading.path
    with open_text(path, errors="surrogateescape") as file:
        number = 0
        while line := file.readline(MAX_LINE_CHARS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARS:
                raise DataError(
                    f"{path}: line {number}: longer than {MAX_LINE_CHARS:,} characters; expected text in lines"
                )
            if line.strip():
                reading.count()
            with reading.rejecting():
                _check_utf8(path, number, line)
                yield number, line.rstrip("\n")


def json_lines(reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a JSON Lines file, or of a JSON array, with its place; a broken line is rejected."""
    path = reading.path
    if _begins_with(path, "["):
        yield from _array(reading)
        return
    for number, line in lines(reading):
        if line.strip():
            where = f"line {number}"
            with reading.rejecting():
                yield where, _object(path, where, _parsed(path, where, line, "one JSON object a line"))


def whole_json(path: Path, shape: str) -> Any:
    """Return the content of a JSON file."""
    with open_text(path) as file:
        return _parsed(path, "", file.read(), shape)


def table(reading: Reading, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file that must have `columns`, each with the line it ends on; short rows are rejected."""
    path = reading.path
    with open_text(path, errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        try:
            names = [name.strip().lstrip("\ufeff") for name in rows.fieldnames or ()]
            rows.fieldnames = names
            if missing := [name for name in columns if name not in names]:
                raise DataError(
                    f"{path}: line 1: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}"
                )
            for row in rows:
                reading.count()
                with reading.rejecting():
                    if any(row[name] is None for name in columns):
                        raise DataError(f"{path}: line {rows.line_num}: expected {len(columns)} fields in the row")
                    fields = {name: row.get(name) or "" for name in names}
                    _check_utf8(path, rows.line_num, "".join(fields.values()))
                    yield rows.line_num, fields
        except csv.Error as error:
            raise DataError(f"{path}: line {rows.line_num}: expected a CSV row ({error})") from error


def dialogues_from(
    reading: Reading, entries: Iterable[tuple[str, T]], build: Callable[[T], Dialogue], shape: str
) -> Iterator[Dialogue]:
    """Yield what `build` makes of each entry, given with its place; one that does not fit the shape is rejected.

    An entry in which nobody says anything is passed over, or rejected where whoever reads wants to know.
    """
    for where, entry in entries:
        with reading.rejecting():
            dialogue = built(reading.path, where, partial(build, entry), shape)
            if reading.rejected is not None and not dialogue.turns:
                raise DataError(f"{reading.path}: {where}: expected turns with text in them, found none")
            yield dialogue


def built(path: Path, where: str, build: Callable[[], T], shape: str) -> T:
    """Return what `build` makes of one record; whatever does not fit becomes an error with the expected shape."""
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        place = f"{path}: {where}: " if where else f"{path}: "
        raise DataError(f"{place}expected {shape} (problem: {error!r})") from error


def _begins_with(path: Path, sign: str) -> bool:
    with open_text(path, errors="replace") as file:
        return file.read(4096).lstrip().startswith(sign)


def _array(reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    path = reading.path
    for index, item in enumerate(whole_json(path, "a JSON array of objects, or one JSON object a line"), 1):
        reading.count()
        with reading.rejecting():
            yield f"item {index}", _object(path, f"item {index}", item)


def _object(path: Path, where: str, data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DataError(f"{path}: {where}: expected a JSON object, got {type(data).__name__}")
    return data


def _parsed(path: Path, where: str, text: str, shape: str) -> Any:
    place = f"{path}: {where}: " if where else f"{path}: "
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}expected {shape} ({error})") from error


def _check_utf8(path: Path, number: int, text: str) -> None:
    if not text.isascii() and (found := NOT_UTF8.search(text)):
        raise _not_utf8(path, number, ord(found[0]) - 0xDC00)


def _not_utf8(path: Path, number: int, byte: int) -> DataError:
    return DataError(f"{path}: line {number}: expected UTF-8 text, got the byte 0x{byte:02x}; save the file as UTF-8")
