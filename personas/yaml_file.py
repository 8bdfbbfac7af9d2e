"""A YAML file people write by hand, read into a pydantic model; every problem with its line and what was expected.

Owns the way from text to model and the wording of problems. Knows no persona and no other model by name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

M = TypeVar("M", bound=BaseModel)
Where = tuple[str | int, ...]
MAX_BYTES = 256 * 1024
PLAIN_TAGS = {"null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value"}
QUOTE_HINT = "put text that contains ': ' or begins with a sign such as * & ! % @ - in quotes"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file. `line` counts from 1; 0: the file as a whole."""

    file: str
    line: int
    field: str
    expected: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.field}: {self.expected}" if self.field else f"{place}: {self.expected}"


@dataclass(slots=True)
class Source:
    """What a file says as plain data, and on which line each part stands."""

    file: str
    data: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def blame(self, where: Where, expected: str) -> None:
        """Add a problem at `where`, or at the closest part around it that stands in the file."""
        known = next((where[:end] for end in range(len(where), -1, -1) if where[:end] in self.lines), ())
        self.problems.append(Problem(self.file, self.lines.get(known, 1), _dotted(where), expected))

    def sorted_problems(self) -> list[Problem]:
        """Return the problems in the order of the file."""
        return sorted(self.problems, key=lambda problem: problem.line)


def read(path: Path) -> Source:
    """Read a file; what is wrong with it as YAML is among the problems."""
    source = Source(str(path))
    try:
        raw = path.read_bytes()
    except OSError as error:
        source.problems.append(Problem(source.file, 0, "", f"not readable: {error.strerror or error}"))
        return source
    if len(raw) > MAX_BYTES:
        expected = f"expected at most {MAX_BYTES // 1024} KiB, got {len(raw) // 1024} KiB"
        source.problems.append(Problem(source.file, 0, "", expected))
        return source
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        expected = f"expected UTF-8 text, got the byte 0x{raw[error.start]:02x}; save the file as UTF-8"
        source.problems.append(Problem(source.file, line, "", expected))
        return source
    return parse(text, source)


def parse(text: str, source: Source) -> Source:
    """Fill `source` from YAML text."""
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        source.data = _plain(node, (), source, set()) if node is not None else None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = error.problem or error.context or "not readable"
        source.problems.append(Problem(source.file, mark.line + 1 if mark else 0, "", f"not YAML: {why}; {QUOTE_HINT}"))
    except YAMLError as error:
        source.problems.append(Problem(source.file, 0, "", f"not YAML: {str(error).splitlines()[0]}"))
    except RecursionError:
        source.problems.append(Problem(source.file, 0, "", "nested too deeply"))
    return source


def validated(source: Source, model: type[M]) -> M | None:
    """Return the data as `model`, or None after adding every problem to the source."""
    if source.problems and source.data is None:
        return None
    if not isinstance(source.data, dict):
        known = ", ".join(model.model_fields)
        source.blame((), f"expected fields such as 'name: value' ({known}), got {_said(source.data)}")
        return None
    try:
        instance = model.model_validate_json(json.dumps(source.data), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            source.blame(details["loc"], _expected(details, model))
        return None
    return None if source.problems else instance


def _plain(node: Node, where: Where, source: Source, seen: set[int]) -> Any:
    """Turn nodes into plain data and note their lines; duplicates, aliases and foreign tags are problems."""
    source.lines.setdefault(where, node.start_mark.line + 1)
    if id(node) in seen:
        source.blame(where, "expected the value itself, got a reference to an anchor (*name); write it out")
        return None
    seen.add(id(node))
    tag = str(node.tag).rpartition(":")[2]
    if tag not in PLAIN_TAGS:
        source.blame(where, f"expected a plain value, got the tag {node.tag}; {QUOTE_HINT}")
        return None
    if isinstance(node, MappingNode):
        return dict(_items(node, where, source, seen))
    if isinstance(node, SequenceNode):
        return [_plain(item, (*where, index), source, seen) for index, item in enumerate(node.value)]
    return _scalar(node, tag) if isinstance(node, ScalarNode) else None


def _items(node: MappingNode, where: Where, source: Source, seen: set[int]) -> Iterator[tuple[str, Any]]:
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            source.blame(where, f"expected a field name, got {'a list' if key_node.id == 'sequence' else 'a mapping'}")
            continue
        key = str(key_node.value)
        if key in first_lines:
            expected = f"expected once, but it stands on line {first_lines[key]} too"
            source.problems.append(Problem(source.file, line, _dotted((*where, key)), expected))
            continue
        first_lines[key] = line
        source.lines[(*where, key)] = line
        yield key, _plain(value_node, (*where, key), source, seen)


def _scalar(node: ScalarNode, tag: str) -> str | int | float | bool | None:
    if tag == "null":
        return None
    if tag in ("bool", "int", "float"):
        try:
            value: bool | int | float = YAML(typ="safe", pure=True).constructor.construct_object(node)
        except ValueError:  # looks like a number and is none, such as 0x_
            return str(node.value)
        return value
    return str(node.value)


def _expected(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, got, limits = details["type"], details.get("input"), details.get("ctx", {})
    if kind == "missing":
        return "expected, but it is missing"
    if kind == "extra_forbidden":
        return f"unknown field{closest(str(details['loc'][-1]), _fields_at(model, details['loc'][:-1]))}"
    if kind == "string_too_long":
        return f"expected at most {limits['max_length']} characters, got {len(str(got).strip())}"
    if kind == "string_too_short":
        return "expected some text, got none"
    if kind == "string_pattern_mismatch":
        return "expected one line without control characters"
    if kind == "value_error":
        return details["msg"].removeprefix("Value error, ")
    if wanted := _WANTED.get(kind):
        hint = "; put it in quotes" if kind == "string_type" and isinstance(got, bool | int | float) else ""
        hint = f"; {QUOTE_HINT}" if kind == "string_type" and isinstance(got, dict) else hint
        return f"expected {wanted}, got {_said(got)}{hint}"
    return f"{details['msg'].replace('Input should be', 'expected a value')}, got {_said(got)}"


_WANTED = {
    "string_type": "text",
    "tuple_type": "a list ('- one' on a line each)",
    "list_type": "a list ('- one' on a line each)",
    "dict_type": "fields such as 'name: value'",
    "model_type": "fields such as 'name: value'",
    "model_attributes_type": "fields such as 'name: value'",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


def _said(value: Any) -> str:
    """Name a value as its writer sees it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 40 else value[:37] + '...'}'"
    return "a list" if isinstance(value, Sequence) else "fields"


def _fields_at(model: type[BaseModel], where: Where) -> list[str]:
    """Return the field names of the model that `where` leads to."""
    here = model
    for part in where:
        if isinstance(part, str) and part in here.model_fields:
            here = next(_models_in(here.model_fields[part].annotation), here)
    return list(here.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def closest(word: str, known: Sequence[str]) -> str:
    """Return a suggestion to append to a message about an unknown word."""
    near = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"


def _dotted(where: Where) -> str:
    """Write a path as people count: facts[1] is the first fact."""
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
