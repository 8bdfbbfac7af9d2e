"""Text and JSON out of files, gzipped or not, with the place of whatever is wrong. Knows no dialogue format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.formats.dialogue import DataError

T = TypeVar("T")
# Longer than any dialogue anybody has on one line, short enough to say so before memory runs out.
MAX_LINE_CHARS = 8_000_000
# What a file that is not UTF-8, not gzip or cut short makes Python raise.
UNREADABLE = (OSError, UnicodeDecodeError, EOFError, zlib.error)


def open_text(path: Path) -> io.TextIOBase:
    """Open a UTF-8 text file, gzipped or not, with or without a byte order mark."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=None)
    return path.open(encoding="utf-8-sig")


def unreadable(path: Path, error: BaseException) -> DataError:
    """Say why a file cannot be read, for bytes that are not UTF-8 with their line."""
    if not isinstance(error, UnicodeDecodeError):
        return DataError(f"{path}: cannot be read: {error}")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                byte = line[wrong.start]
                return DataError(
                    f"{path}: line {number}: expected UTF-8 text, got the byte 0x{byte:02x}; save the file as UTF-8"
                )
    return DataError(f"{path}: cannot be read: {error}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines without their ends, numbered from 1."""
    with open_text(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_CHARS + 1):
            number += 1
            if len(line) > MAX_LINE_CHARS:
                raise DataError(
                    f"{path}: line {number}: longer than {MAX_LINE_CHARS:,} characters; expected text in lines"
                )
            yield number, line.rstrip("\n")


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object of a JSON Lines file, or of a JSON array, with its place."""
    if _begins_with(path, "["):
        yield from _array(path)
        return
    for number, line in lines(path):
        if line.strip():
            where = f"line {number}"
            yield where, _object(path, where, _parsed(path, where, line, "one JSON object a line"))


def whole_json(path: Path, shape: str) -> Any:
    """Return the content of a JSON file."""
    with open_text(path) as file:
        return _parsed(path, "", file.read(), shape)


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file that must have `columns`, each with the line it ends on."""
    with open_text(path) as file:
        rows = csv.DictReader(file)
        try:
            names = [name.strip().lstrip("\ufeff") for name in rows.fieldnames or ()]
            rows.fieldnames = names
            if missing := [name for name in columns if name not in names]:
                raise DataError(
                    f"{path}: line 1: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}"
                )
            for row in rows:
                if any(row[name] is None for name in columns):
                    raise DataError(f"{path}: line {rows.line_num}: expected {len(columns)} fields in the row")
                yield rows.line_num, {name: row.get(name) or "" for name in names}
        except csv.Error as error:
            raise DataError(f"{path}: line {rows.line_num}: expected a CSV row ({error})") from error


def built(path: Path, where: str, build: Callable[[], T], shape: str) -> T:
    """Return what `build` makes of one record; whatever does not fit becomes an error with the expected shape."""
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        place = f"{path}: {where}: " if where else f"{path}: "
        raise DataError(f"{place}expected {shape} (problem: {error!r})") from error


def _begins_with(path: Path, sign: str) -> bool:
    with open_text(path) as file:
        return file.read(4096).lstrip().startswith(sign)


def _array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    shape = "a JSON array of objects, or one JSON object a line"
    for index, item in enumerate(whole_json(path, shape), 1):
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
