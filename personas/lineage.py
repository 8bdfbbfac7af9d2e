"""What the registry writes down: lineage, the gate's verdict, promotions. Owns the shape of these files.

Each is one JSON object, written whole or not at all. Knows neither the folder they are in nor who may change them.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personas.errors import RegistryError

R = TypeVar("R", bound=BaseModel)


def now() -> datetime:
    """Return the present moment in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class _Record(BaseModel):
    # Figures may be infinite: a perplexity that overflowed is a reason to refuse, not to lose the record.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Figure(_Record):
    """One measured value beside the limit it has to keep; `unit` is for people, such as "bits per byte"."""

    name: str
    value: float
    limit: float
    rule: Literal["at most", "at least"] = "at most"
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the limit is kept; no number (NaN) keeps none."""
        return self.value <= self.limit if self.rule == "at most" else self.value >= self.limit

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name} {self.value:.4g}{unit}, expected {self.rule} {self.limit:.4g}"


class Verdict(_Record):
    """What the gate measured; a model is accepted if every figure keeps its limit."""

    figures: tuple[Figure, ...] = Field(min_length=1)
    against: str = Field("", description="the model that it was measured beside, which it was to take the place of")
    at: datetime = Field(default_factory=now)

    @property
    def is_accepted(self) -> bool:
        """Whether every figure keeps its limit."""
        return all(figure.is_met for figure in self.figures)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The figures that decided against the model, in words; empty for an accepted one."""
        return tuple(str(figure) for figure in self.figures if not figure.is_met)


class Lineage(_Record):
    """The content of `lineage.json`. Who adds a version says what is known; the registry adds `digest`, `files`."""

    format: Literal[1] = 1
    base: str | None = Field(None, description="what training started from: a name@version, a base's name, a hub id")
    data: dict[str, str] = Field(default_factory=dict, description="data file → SHA-256")
    recipe: dict[str, Any] = Field(default_factory=dict, description="the training configuration")
    by: str = Field("", description="who asked for it, such as discord:42 or a system user")
    at: datetime = Field(default_factory=now)
    job: str | None = Field(None, description="the training job that made it")
    metrics: dict[str, Any] = Field(default_factory=dict)
    verdict: Verdict | None = None
    forced_by: str | None = Field(None, description="who lets it be served in spite of the verdict")
    digest: str = ""
    files: dict[str, str] = Field(default_factory=dict, description="file in the folder → SHA-256, as it was added")

    @property
    def judgement(self) -> Literal["", "accepted", "refused", "not judged"]:
        """What the gate said; "" for a version that did not come from a training job, which the gate never sees."""
        if self.verdict is None:
            return "not judged" if self.job else ""
        return "accepted" if self.verdict.is_accepted else "refused"

    @property
    def is_refused(self) -> bool:
        """Whether it may not be served: the gate refused it, or has not judged it yet, and nobody overruled that."""
        return self.judgement in ("refused", "not judged") and not self.forced_by

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it may not be served unless by force, in words."""
        if self.judgement == "not judged":
            return ("its job ended before the gate had judged it, or is at it",)
        return self.verdict.reasons if self.verdict else ()


class Promotion(_Record):
    """Who made which version current (or took it back), and when."""

    version: str
    by: str = ""
    at: datetime = Field(default_factory=now)


class Pointer(_Record):
    """The content of `current.json`: a promotion is laid on top, a rollback takes the top away.

    With `is_withdrawn` the first promotion was taken back, too. Its version keeps the name, which files and settings
    may say, until the next promotion takes its place; no rollback returns to it.
    """

    promotions: tuple[Promotion, ...] = ()
    rolled_back: tuple[Promotion, ...] = ()
    is_withdrawn: bool = False

    def promoted(self, version: str, by: str) -> Pointer:
        """Return the pointer with a promotion on top, or in place of the withdrawn one."""
        below = () if self.is_withdrawn else self.promotions
        return Pointer(promotions=(*below, Promotion(version=version, by=by)), rolled_back=self.rolled_back)

    def back_to(self, below: tuple[Promotion, ...], by: str) -> Pointer:
        """Return the pointer with `below` left of its promotions, the top being taken back."""
        return Pointer(promotions=below, rolled_back=(*self.rolled_back, self._undone(by)))

    def withdrawn(self, by: str) -> Pointer:
        """Return the pointer with the only promotion taken back; unchanged where there is none, or it is so already."""
        if self.is_withdrawn or not self.promotions:
            return self
        return Pointer(
            promotions=self.promotions[-1:], rolled_back=(*self.rolled_back, self._undone(by)), is_withdrawn=True
        )

    def _undone(self, by: str) -> Promotion:
        return self.promotions[-1].model_copy(update={"by": by, "at": now()})


class Chosen(_Record):
    """The content of `chosen.json`: the name that is served where none is asked for."""

    name: str
    by: str = ""
    at: datetime = Field(default_factory=now)


class Voice(_Record):
    """The name that a persona speaks with, whichever of its versions is current; who said so, and when."""

    persona: str
    checkpoint: str
    by: str = ""
    at: datetime = Field(default_factory=now)


class Voices(_Record):
    """The content of `voices.json`: at most one voice for a persona."""

    voices: tuple[Voice, ...] = ()


def read_record(path: Path, kind: type[R]) -> R:
    """Read one of the records above; raises `RegistryError` that says what is wrong with the file."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise RegistryError(f"{path}: {where}: {first['msg']}. Restore the file.") from error


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record so that every reader, and a machine that loses power, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=2, exclude_none=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
