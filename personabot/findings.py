"""What a check of `personabot doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """`problem` is something missing or misconfigured; `note` is worth knowing, and works."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table: what was looked at, how it is, and how to mend it."""

    part: str
    status: Status
    text: str
    mend: str = ""


def ok(part: str, text: str) -> Finding:
    """Something is as it should be."""
    return Finding(part, Status.OK, text)


def note(part: str, text: str, mend: str = "") -> Finding:
    """Something works, but people may wonder."""
    return Finding(part, Status.NOTE, text, mend)


def problem(part: str, text: str, mend: str) -> Finding:
    """Something does not work until it is mended."""
    return Finding(part, Status.PROBLEM, text, mend)
