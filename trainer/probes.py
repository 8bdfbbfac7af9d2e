"""What the personas are asked, and by which words a reply shows that it used the fact.

Owns the shape of `probes.yaml` and the rule of what counts. Knows no model and asks nobody; must never feed training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from personas.errors import PersonaFileError
from personas.yaml_file import read, validated

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
SHIPPED = Path(__file__).with_name("probes.yaml")


class Probe(BaseModel):
    """One fact of a persona, one question in several wordings, and what a reply that uses the fact contains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fact: Text
    kind: Literal["name", "fact"]
    ask: Annotated[tuple[Text, ...], Field(min_length=3, max_length=3)]
    expect: Annotated[tuple[Text, ...], Field(min_length=1)]

    @field_validator("expect")
    @classmethod
    def _are_patterns(cls, expect: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in expect:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"expected a pattern, got {pattern!r}: {error}") from error
        return expect

    def is_used_in(self, reply: str) -> bool:
        """Return whether an expected pattern begins at the start of a word of `reply`."""
        plain = reply.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        return any(re.search(rf"\b(?:{pattern})", plain, re.IGNORECASE) for pattern in self.expect)


class Probes(BaseModel):
    """All probes, by the persona's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    personas: dict[str, tuple[Probe, ...]]

    def questions(self) -> Iterator[tuple[str, Probe, str]]:
        """Yield (persona name, probe, one wording), in the file's order."""
        for name, probes in self.personas.items():
            for probe in probes:
                for question in probe.ask:
                    yield name, probe, question


def load_probes(path: Path = SHIPPED) -> Probes:
    """Read a probe file, the shipped one covers the catalogue; raises `PersonaFileError` naming every problem."""
    source = read(path)
    probes = validated(source, Probes)
    if probes is None:
        raise PersonaFileError(source.sorted_problems())
    return probes
