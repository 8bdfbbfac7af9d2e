"""A retraining job as everybody sees it: what was ordered, how far it is, what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, Self

from personas.conversation import Conversation

UPLOADS: Final = "uploads"  # the folder, below the data folder, in which attachments wait to be read
FOLDERS: Final = "training/jobs"  # the one in which each job has a folder, named after its id
CURVE_FILE: Final = "curve.png"  # in a job's folder: the loss as a picture


class State(StrEnum):
    """A job's life: checking, proposed (waits for a confirmation), queued, training, judging, and an end.

    A comparison of two checkpoints trains nothing: it goes from checking to compared.
    """

    CHECKING = "checking"
    PROPOSED = "proposed"
    QUEUED = "queued"
    TRAINING = "training"
    JUDGING = "judging"
    PROMOTED = "promoted"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    COMPARED = "compared"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in ENDS


ENDS: Final = frozenset({State.PROMOTED, State.REFUSED, State.FAILED, State.CANCELLED, State.COMPARED})
# What people choose from; `trainer.retraining.recipes` says what each does.
RECIPES: Final = {
    "quick": "one pass over the data, to try things out",
    "standard": "three passes: for a data set of some thousand dialogues",
    "voice": "six passes over the bot's side alone: for one character's way of speaking",
}


@dataclass(frozen=True, slots=True)
class Order:
    """What an administrator asked for, and where to tell them about it.

    `data` is a file below the data folder; `base` a checkpoint or model, "" for the current one; `persona` is set for
    a voice of its own; `speaker` is whose lines the bot learns, where the people in the file have names; `is_forced`
    promotes whatever the gate says, and is on record. With `other`, `base` and `other` are to be compared, and nothing
    is trained.
    """

    name: str
    data: str
    recipe: str
    base: str = ""
    other: str = ""
    persona: str = ""
    speaker: str = ""
    by: str = ""
    by_name: str = ""
    conversation: str = ""
    is_forced: bool = False

    @property
    def where(self) -> Conversation | None:
        """The conversation in which the job was ordered; None for an order without one."""
        return Conversation.parse(self.conversation) if self.conversation else None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training is; `loss` is the newest, in nats per token; `seconds_left` is None where unknown.

    `experiments` are the trackers that the curves go to, each with its address, or "" for files in the run's folder.
    """

    step: int = 0
    tokens: int = 0
    total_tokens: int = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0
    seconds_left: float | None = None
    experiments: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of the training is done, from 0 to 1."""
        return min(self.tokens / self.total_tokens, 1.0) if self.total_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One job's record. `fence` proves who works on it; `report` is the dry run's, `result` the judgement's figures.

    `reason` says why it was refused or failed, or who cancelled it. `message_id` is the message that shows the job.
    """

    id: str
    order: Order
    state: State
    created_at: float = 0.0
    fence: int = 0
    num_claims: int = 0
    wants_cancel: bool = False
    progress: Progress = field(default_factory=Progress)
    report: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    message_id: str = ""

    @classmethod
    def from_record(cls, job_id: str, record: Mapping[str, str]) -> Self:
        """Read the hash that Redis has; unknown fields are ignored, so that older readers survive."""
        return cls(
            job_id,
            _known(Order, json.loads(record["order"])),
            State(record["state"]),
            created_at=float(record.get("created_at") or 0),
            fence=int(record.get("fence") or 0),
            num_claims=int(record.get("num_claims") or 0),
            wants_cancel=record.get("wants_cancel") == "1",
            progress=_known(Progress, json.loads(record.get("progress") or "{}")),
            report=json.loads(record.get("report") or "{}"),
            result=json.loads(record.get("result") or "{}"),
            reason=record.get("reason", ""),
            message_id=record.get("message_id", ""),
        )


def encode(value: Order | Progress | Mapping[str, Any]) -> str:
    """Return a part of the record as one line of JSON."""
    data = dict(value) if isinstance(value, Mapping) else asdict(value)
    return json.dumps(data, ensure_ascii=False)


def _known(kind: Any, data: dict[str, Any]) -> Any:
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in data.items() if name in names})
