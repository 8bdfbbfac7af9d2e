"""What a data file holds, before anything is trained on it: counts, lengths in tokens, and what would be learnt.

Pure but for reading the file; the words and colours on the screen are the command's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from personas.layout import Example, Layout, Part
from trainer.formats import DataError, Dialogue, open_text, read_dialogues, sniff

# So many dialogues are encoded, evenly spread over the file; counting goes over all of them.
MAX_ENCODED = 2000
NUM_SAMPLES = 3
PERCENTILES = (50, 90, 95, 99, 100)
LICENCE = re.compile(r'"licen[cs]e"\s*:\s*"([^"\n]{1,80})"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Counts:
    """What is in a file. `num_two_sided`: dialogues that training tells from both sides unless told otherwise.

    `num_duplicates`: dialogues whose turns stand in it already; `licence` where it names one.
    """

    file: str
    format: str
    num_dialogues: int
    num_turns: int
    num_words: int
    num_personas: int
    num_two_sided: int
    num_with_candidates: int
    num_duplicates: int
    licence: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the dialogues are in tokens of one layout; shares are of dialogues and of tokens."""

    layout: str
    max_tokens: int
    num_encoded: int
    percentiles: dict[int, int]
    share_truncated: float
    share_trained: float


def count(path: Path, format: str | None, dialogues: Sequence[Dialogue]) -> Counts:
    """Count what `dialogues`, read from `path`, hold."""
    texts = [tuple(turn.text for turn in dialogue.turns) for dialogue in dialogues]
    return Counts(
        file=path.name,
        format=format or sniff(path),
        num_dialogues=len(dialogues),
        num_turns=sum(map(len, texts)),
        num_words=sum(len(text.split()) for turns in texts for text in turns),
        num_personas=len({dialogue.facts for dialogue in dialogues if dialogue.facts}),
        num_two_sided=sum(dialogue.has_two_sides for dialogue in dialogues),
        num_with_candidates=sum(bool(dialogue.choices) for dialogue in dialogues),
        num_duplicates=len(texts) - len(set(texts)),
        licence=_licence(path),
    )


def measure(dialogues: Sequence[Dialogue], layout: Layout, max_tokens: int) -> Lengths:
    """Encode a spread of the dialogues as for training, once without a bound on the length."""
    chosen = spread(dialogues, MAX_ENCODED)
    examples = [_whole(dialogue, layout) for dialogue in chosen]
    lengths = sorted(max((len(example.ids) for example in some), default=0) for some in examples)
    parts = [part for some in examples for example in some for part in example.parts]
    return Lengths(
        layout=layout.name,
        max_tokens=max_tokens,
        num_encoded=len(chosen),
        percentiles={p: lengths[min(len(lengths) * p // 100, len(lengths) - 1)] for p in PERCENTILES},
        share_truncated=sum(length > max_tokens for length in lengths) / len(lengths),
        share_trained=sum(part is not Part.CONTEXT for part in parts) / max(len(parts), 1),
    )


def read(path: Path, format: str | None, speaker: str) -> list[Dialogue]:
    """Read the whole file; raise `DataError` where there is nothing in it."""
    dialogues = list(read_dialogues(path, format, speaker=speaker))
    if not dialogues:
        raise DataError(f"{path}: no dialogues in it")
    return dialogues


def samples(dialogues: Sequence[Dialogue], layout: Layout, max_tokens: int) -> list[list[tuple[bool, str]]]:
    """Return a few examples as they are trained on: stretches of text, and whether each is learnt."""
    shown = []
    for dialogue in spread(dialogues, NUM_SAMPLES):
        for example in layout.examples_of(
            dialogue.facts, dialogue.turns, max_tokens=max_tokens, untrained=dialogue.untrained
        )[-1:]:
            shown.append(_stretches(example, layout))
    return shown


def as_json(counts: Counts, lengths: Lengths) -> dict[str, Any]:
    """Return both as one JSON-ready object; `tokens` maps p50 ... p100 to lengths."""
    data = asdict(counts) | asdict(lengths)
    data["tokens"] = {f"p{percentile}": length for percentile, length in data.pop("percentiles").items()}
    return data


def spread(dialogues: Sequence[Dialogue], number: int) -> list[Dialogue]:
    """Return at most `number` of them, evenly spaced."""
    step = max(len(dialogues) / number, 1.0)
    return [dialogues[int(place * step)] for place in range(min(number, len(dialogues)))]


def _whole(dialogue: Dialogue, layout: Layout) -> list[Example]:
    return layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=1 << 30, untrained=dialogue.untrained)


def _stretches(example: Example, layout: Layout) -> list[tuple[bool, str]]:
    tokens = zip(example.ids, (part is not Part.CONTEXT for part in example.parts), strict=True)
    runs = itertools.groupby(tokens, key=lambda token: token[1])
    return [(is_trained, layout.spelled(i for i, _ in run)) for is_trained, run in runs]


def _licence(path: Path) -> str:
    if path.is_dir():
        return ""
    with open_text(path) as file:
        found = LICENCE.search(file.read(20_000))
    return found[1] if found else ""
