"""The dry run of a retraining: reads the data, says what is there and what a run would take, and trains nothing.

What it decides is written into the job's folder: `data/` (the dialogues to train and to judge by), `config.toml` and
`report.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import tomli_w

from personas.catalogue import load_catalogue
from personas.checkpoint import sha256
from personas.conversation import Role
from personas.errors import PersonabotError
from personas.layout import Layout
from personas.lineage import Figure, Verdict
from personas.settings import Settings
from personas.voices import CORPUS_CAUTION
from trainer.data import spoken
from trainer.formats import Dialogue, Rejected, UnknownSpeaker, read_dialogues
from trainer.measure import Measurements
from trainer.retraining import estimates
from trainer.retraining.data_checks import check_data
from trainer.retraining.general import general_set
from trainer.retraining.recipes import Base, configuration
from trainer.retraining.starting_point import find_base, voice_of
from trainer.track import check_trackers
from worker.device import choose_device
from worker.loading import load_model
from worker.queue.job import Order

HELD_OUT: Final = 20  # every so many-th dialogue judges the result instead of training it
MAX_HELD_OUT: Final = 200
UNSTATED: Final = "not stated"


class NothingToLearn(PersonabotError):
    """A data set has too little in it to train on and to judge by."""


class TooManyRejected(PersonabotError):
    """A data file has too many lines that cannot be read; `rejected` says what is wrong with the first."""

    def __init__(self, figure: Figure, rejected: Rejected) -> None:
        super().__init__(str(figure))
        self.rejected = rejected


class SpeakerWanted(PersonabotError):
    """The order has to say whose lines of a file the bot learns; says how, in the words of a chat's commands."""


@dataclass(frozen=True, slots=True)
class Split:
    """Dialogues to train with and to judge by; equal ones are on the same side. `num_left_out` had no turn to learn."""

    train: tuple[Dialogue, ...]
    valid: tuple[Dialogue, ...]
    num_left_out: int


def dry_run(folder: Path, order: Order, settings: Settings) -> dict[str, Any]:
    """Read the data of `order` and write into the job's `folder` what a run needs; return the report."""
    check_trackers(settings.trackers)
    path = settings.data_dir / order.data
    rejected = Rejected()
    base, layout = find_base(settings, order.base or voice_of(order, settings))
    read = readable(path, rejected, settings, speaker=order.speaker)
    told = read if layout.name == "corpus" else [part for dialogue in read for part in spoken(dialogue)]
    dialogues = with_persona(told, order, settings)
    parts = split(dialogues)
    verdict = data_verdict(dialogues, base, settings)
    num_tokens = count_tokens(parts.train, layout)
    (folder / "data").mkdir(exist_ok=True)
    for name, group in (("train", parts.train), ("valid", parts.valid)):
        write_dialogues(folder / "data" / f"{name}.jsonl", group)
    config = configuration(
        order.name,
        order.recipe,
        base,
        train=folder / "data" / "train.jsonl",
        valid=folder / "data" / "valid.jsonl",
        num_tokens=num_tokens,
        has_two_sides=all(dialogue.has_two_sides for dialogue in parts.train),
        settings=settings,
    )
    (folder / "config.toml").write_text(
        tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8"
    )
    return {
        "data": path.name,
        "sha256": sha256(path),
        "dialogues": len(dialogues),
        "passages": len(told) if len(told) > len(read) else 0,
        "caution": CORPUS_CAUTION if order.persona and layout.name == "corpus" else "",
        "held_out": len(parts.valid),
        "left_out": parts.num_left_out,
        **counted(rejected),
        "turns": sum(len(dialogue.turns) for dialogue in dialogues),
        "tokens": num_tokens,
        "licence": licence_of(path),
        "base": base.reference,
        "train_tokens": config.train_tokens,
        "seconds": estimates.seconds(settings, base, config.train_tokens),
        "memory_bytes": estimates.memory_bytes(settings, base, choose_device(settings.device)[0].type),
        "disk_bytes": estimates.disk_bytes(base),
        "checks": [str(figure) for figure in verdict.figures],
        "refusal": "; ".join(verdict.reasons),
        "kind": "data checks" if verdict.reasons else "",
    }


def refused(error: PersonabotError) -> dict[str, Any]:
    """Return the report on data that cannot be used.

    `refusal` and `first_rejected` may quote the data: they are for whoever sent them. A log gets `kind` and the counts.
    """
    counts = counted(error.rejected) if isinstance(error, TooManyRejected) else {}
    return {"refusal": str(error), "kind": type(error).__name__, **counts}


def counted(rejected: Rejected) -> dict[str, Any]:
    """Return how many lines were left out of how many, and what is wrong with the first."""
    return {"lines": rejected.num_lines, "rejected": rejected.num, "first_rejected": rejected.first}


def readable(path: Path, rejected: Rejected, settings: Settings, *, speaker: str = "") -> list[Dialogue]:
    """Return the dialogues of a file without the lines that cannot be read; raises `TooManyRejected` for too many.

    Where people have names, the bot learns the lines of `speaker`; raises `SpeakerWanted` where that is nobody there.
    """
    try:
        dialogues = list(read_dialogues(path, speaker=speaker, rejected=rejected))
    except UnknownSpeaker as error:
        how = "Order it again with speaker=NAME, in quotes if it has spaces"
        raise SpeakerWanted(f"{error.why} {how}: {error.there}") from error
    figure = Figure(name="rejected lines", value=rejected.share, limit=settings.training_data.max_rejected)
    if not figure.is_met:
        raise TooManyRejected(figure, rejected)
    return dialogues


def data_verdict(dialogues: Sequence[Dialogue], base: Base, settings: Settings) -> Verdict:
    """Return what the data checks say, the model that is trained further being asked as well."""

    def bits_per_byte(some: Sequence[Dialogue]) -> float:
        loaded = load_model(base.path, device=settings.device, dtype=settings.dtype)
        return float(Measurements(loaded).score(some)["bpb"])

    return check_data(dialogues, general_set(), bits_per_byte, settings.training_data)


def with_persona(dialogues: Sequence[Dialogue], order: Order, settings: Settings) -> list[Dialogue]:
    """Return the dialogues, told as the order's persona where they say no more of who speaks than a name."""
    if not order.persona:
        return list(dialogues)
    facts = load_catalogue(settings.personas_dir).get(order.persona).facts
    return [replace(each, facts=facts) if says_no_more_than_a_name(each) else each for each in dialogues]


def says_no_more_than_a_name(dialogue: Dialogue) -> bool:
    """Say whether a dialogue has no facts, or the one that a chat's export has: what its owner is called."""
    return dialogue.facts in ((), (f"My name is {dialogue.name}.",))


def split(dialogues: Iterable[Dialogue]) -> Split:
    """Hold out every twentieth dialogue, chosen by its content; raises `NothingToLearn` for fewer than two."""
    every = list(dialogues)
    usable = [dialogue for dialogue in every if is_learnable(dialogue)]
    by_content: dict[str, list[Dialogue]] = {}
    for dialogue in usable:
        by_content.setdefault(hashlib.sha256(line_of(dialogue).encode()).hexdigest(), []).append(dialogue)
    if len(by_content) < 2:
        raise NothingToLearn(
            f"expected at least two different dialogues in which the bot speaks, found {len(by_content)}"
        )
    chosen = set(sorted(by_content)[: max(1, min(len(by_content) // HELD_OUT, MAX_HELD_OUT))])
    train = tuple(one for key, group in by_content.items() if key not in chosen for one in group)
    valid = tuple(group[0] for key, group in by_content.items() if key in chosen)
    return Split(train, valid, len(every) - len(usable))


def is_learnable(dialogue: Dialogue) -> bool:
    """Say whether there is a turn of the bot's to learn in a dialogue."""
    return any(turn.role is Role.BOT and index not in dialogue.untrained for index, turn in enumerate(dialogue.turns))


def count_tokens(dialogues: Iterable[Dialogue], layout: Layout) -> int:
    """Return how many tokens the dialogues are in a layout, each told once."""
    return sum(
        len(example.ids)
        for dialogue in dialogues
        for example in layout.examples_of(
            dialogue.facts, dialogue.turns, max_tokens=layout.max_tokens, untrained=dialogue.untrained
        )
    )


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write dialogues in the format `spc`, one a line."""
    path.write_text("".join(line_of(dialogue) + "\n" for dialogue in dialogues), encoding="utf-8")


def line_of(dialogue: Dialogue) -> str:
    """Return a dialogue as a line of JSON."""
    turns = [
        {"s": 2 if turn.role is Role.BOT else 1, "t": turn.text}
        | ({"untrained": True} if index in dialogue.untrained else {})
        for index, turn in enumerate(dialogue.turns)
    ]
    data = {"p1": dialogue.partner_facts, "p2": dialogue.facts, "turns": turns}
    return json.dumps(data, ensure_ascii=False)


def licence_of(path: Path) -> str:
    """Return what the data says of its licence: a field of its first line, or the first line of NAME.licence."""
    beside = path.with_name(path.name + ".licence")
    if beside.is_file():
        return (beside.read_text(encoding="utf-8").strip().splitlines() or [UNSTATED])[0][:100]
    try:
        with path.open(encoding="utf-8") as file:
            data = json.loads(file.readline(1_000_000))
        said = data.get("licence") or data.get("license")
    except (ValueError, OSError, AttributeError):
        return UNSTATED
    return str(said)[:100] if said else UNSTATED
