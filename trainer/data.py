"""From dialogues to batches: which dialogue comes when, what is varied in it, and how sequences share a batch.

Everything is a function of the seed and a position, so that a run resumes at any batch. Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from personas.conversation import Role, Turn
from personas.layout import Example, Layout, Part
from trainer.augment import spaced, with_name, with_questions
from trainer.config import Source
from trainer.formats import DataError, Dialogue, read_dialogues

# Sequences are sorted by length within windows of this many dialogues: enough for even batches, few enough to mix.
WINDOW_DIALOGUES = 768


@dataclass(frozen=True, slots=True)
class Corpus:
    """A source with its dialogues in memory."""

    source: Source
    dialogues: tuple[Dialogue, ...]

    @classmethod
    def read(cls, source: Source) -> Corpus:
        """Read the whole file; raise `DataError` where there is nothing in it."""
        dialogues = tuple(read_dialogues(source.path, source.format, speaker=source.speaker, split=source.split))
        if not dialogues:
            raise DataError(f"{source.path}: no dialogues in it")
        return cls(source, dialogues)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. ids (B, T); targets (B, T) hold the Part of the token at each position."""

    ids: list[list[int]]
    parts: list[list[Part]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def num_labels(self) -> int:
        return sum(part != Part.CONTEXT for row in self.parts for part in row[1:])


class Stream:
    """An endless, seeded sequence of micro-batches over several corpora."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        layout: Layout,
        *,
        seed: int,
        micro_tokens: int,
        max_tokens: int,
        loss_on: str,
    ) -> None:
        self.corpora = corpora
        self.layout = layout
        self.seed = seed
        self.micro_tokens = micro_tokens
        self.max_tokens = max_tokens
        self.roles = frozenset(Role) if loss_on == "both" else frozenset({Role.BOT})

    def batches(self, *, window: int = 0, skip: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """Yield (window, index in it, batch) from the given place on."""
        while True:
            for index, batch in enumerate(self._window(window)):
                if index >= skip:
                    yield window, index, batch
            window, skip = window + 1, 0

    def _window(self, number: int) -> list[Batch]:
        rng = random.Random(f"{self.seed}:window:{number}")
        examples: list[Example] = []
        first = number * WINDOW_DIALOGUES
        total_share = sum(corpus.source.share for corpus in self.corpora)
        for corpus in self.corpora:
            # Up to position p a corpus has given floor(p * share) dialogues: even, and known without counting.
            share = corpus.source.share / total_share
            start, stop = (int(position * share) for position in (first, first + WINDOW_DIALOGUES))
            for cursor in range(start, stop):
                dialogue, is_flipped = self._dialogue(corpus, cursor)
                varied = vary(dialogue.flipped() if is_flipped else dialogue, corpus.source, f"{self.seed}:{cursor}")
                examples += self.layout.examples_of(
                    varied.facts, varied.turns, max_tokens=self.max_tokens, roles=self.roles
                )
        batches = bucketed(examples, self.micro_tokens)
        rng.shuffle(batches)
        return batches

    def _dialogue(self, corpus: Corpus, cursor: int) -> tuple[Dialogue, bool]:
        """Return the dialogue at `cursor` and whether it is told from the first speaker's side."""
        num_sides = 2 if corpus.source.both_sides else 1
        epoch, index = divmod(cursor, len(corpus.dialogues) * num_sides)
        order = _order(len(corpus.dialogues) * num_sides, f"{self.seed}:{corpus.source.path.name}:{epoch}")
        item, side = divmod(order[index], num_sides)
        return corpus.dialogues[item], side == 1


_orders: dict[tuple[int, str], list[int]] = {}


def _order(length: int, key: str) -> list[int]:
    """Return the seeded permutation for one epoch of one corpus; the last few are kept."""
    if (length, key) not in _orders:
        if len(_orders) > 16:
            _orders.clear()
        order = list(range(length))
        random.Random(key).shuffle(order)
        _orders[length, key] = order
    return _orders[length, key]


def vary(dialogue: Dialogue, source: Source, key: str) -> Dialogue:
    """Apply the variations of `source` to a dialogue: dropped facts, names, questions, spacing."""
    rng = random.Random(f"{key}:{source.path.name}")
    facts = list(dialogue.facts)
    if source.drop_facts and len(facts) > 2:
        num_kept = len(facts) - int(rng.random() * source.drop_facts * len(facts))
        first, rest = facts[:1], rng.sample(facts[1:], num_kept - 1)
        facts = first + rest if dialogue.name else rng.sample(first + rest, num_kept)
    dialogue = replace(dialogue, facts=tuple(facts))
    if rng.random() < source.named:
        dialogue = with_name(dialogue, rng)
    is_lower = bool(dialogue.turns) and all(turn.text == turn.text.lower() for turn in dialogue.turns)
    if is_lower and dialogue.name and rng.random() < 0.8:
        dialogue = replace(dialogue, facts=tuple(f.lower() for f in dialogue.facts))
    if rng.random() < source.questions:
        num_questions = rng.choice((1, 1, 2, 3))
        dialogue = with_questions(dialogue, rng, num_questions=num_questions, is_lower=is_lower)
    if rng.random() < source.spaced:
        dialogue = replace(dialogue, turns=tuple(Turn(turn.role, spaced(turn.text)) for turn in dialogue.turns))
    return dialogue


def bucketed(examples: Sequence[Example], micro_tokens: int) -> list[Batch]:
    """Group examples of similar length so that a batch, padded, holds at most `micro_tokens` tokens."""
    batches: list[Batch] = []
    rows: list[Example] = []
    for example in sorted(examples, key=lambda e: len(e.ids)):
        if rows and (len(rows) + 1) * len(example.ids) > micro_tokens:
            batches.append(Batch([e.ids for e in rows], [e.parts for e in rows]))
            rows = []
        rows.append(example)
    if rows:
        batches.append(Batch([e.ids for e in rows], [e.parts for e in rows]))
    return batches
