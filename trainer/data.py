"""From dialogues to batches: which dialogue comes when, what is varied in it, and how sequences share a batch.

Everything is a function of the seed and a position, so that a run resumes at any batch. Knows no models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from personas.conversation import Role, Turn
from personas.layout import Example, Layout, Part
from trainer.augment import spaced, with_name, with_questions
from trainer.candidates import wrong_replies
from trainer.config import Source
from trainer.formats import DataError, Dialogue, passages, read_dialogues

# Sequences are sorted by length within windows of this many dialogues: enough for even batches, few enough to mix.
WINDOW_DIALOGUES = 768


@dataclass(frozen=True)
class Corpus:
    """A source with its dialogues in memory."""

    source: Source
    dialogues: tuple[Dialogue, ...]

    @property
    def key(self) -> str:
        """What its random choices depend on, besides the seed."""
        return self.source.path.name

    @cached_property
    def tellings(self) -> Sequence[tuple[int, int]]:
        """What a pass goes over: the index of a dialogue, and the side it is told from: 0 the bot's, 1 the other's."""
        asked = self.source.both_sides
        return [
            (index, side)
            for index, dialogue in enumerate(self.dialogues)
            for side in range(2 if asked or (asked is None and dialogue.has_two_sides) else 1)
        ]

    @property
    def num_tellings(self) -> int:
        """The number of its dialogues, each side told by itself counted."""
        return len(self.tellings)

    @classmethod
    def read(cls, source: Source, split: str = "train") -> Corpus:
        """Read the whole file, of several splits the one named; raise `DataError` where there is nothing in it."""
        wanted = source.split or split
        dialogues = tuple(read_dialogues(source.path, source.format, speaker=source.speaker, split=wanted))
        if not dialogues:
            raise DataError(f"{source.path}: no dialogues in it")
        return cls(source, dialogues)

    def in_passages(self) -> Corpus:
        """Return it with prose cut into turns of somebody who speaks, for layouts of dialogue."""
        return replace(self, dialogues=tuple(part for dialogue in self.dialogues for part in spoken(dialogue)))


def spoken(dialogue: Dialogue) -> list[Dialogue]:
    """Return prose as turns of somebody who speaks, a passage each; a dialogue comes back as it is."""
    is_prose = len(dialogue.turns) == 1 and dialogue.turns[0].role is Role.BOT and not dialogue.facts
    if not is_prose:
        return [dialogue]
    return [replace(dialogue, turns=(Turn(Role.BOT, text),)) for text in passages(dialogue.turns[0].text)]


# A token of a batch: row, column.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. ids (B, T); parts (B, T) hold the Part of the token at each position.

    `choices` are questions: where each candidate of it ends, the right one first.
    """

    ids: list[list[int]]
    parts: list[list[Part]]
    choices: list[list[Place]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.ids))

    @property
    def num_labels(self) -> int:
        return sum(part != Part.CONTEXT for row in self.parts for part in row[1:])


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a batch: an example, and of its question the wrong replies behind the same context."""

    rows: list[Example]
    ends: list[Place] = field(default_factory=list)


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
        num_candidates: int = 1,
        max_history: int | None = None,
    ) -> None:
        self.corpora = corpora
        self.layout = layout
        self.seed = seed
        self.micro_tokens = micro_tokens
        self.max_tokens = max_tokens
        self.roles = frozenset(Role) if loss_on == "both" else frozenset({Role.BOT})
        self.num_candidates = num_candidates
        self.max_history = max_history

    def batches(self, *, window: int = 0, skip: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """Yield (window, index in it, batch) from the given place on; the next window is made beside the training."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as beside:
            coming = beside.submit(self._window, window)
            while True:
                batches, following = coming.result(), None
                for index, batch in enumerate(batches):
                    if index >= max(skip, len(batches) // 2) and following is None:
                        following = beside.submit(self._window, window + 1)
                    if index >= skip:
                        yield window, index, batch
                coming = following or beside.submit(self._window, window + 1)
                window, skip = window + 1, 0

    def _window(self, number: int) -> list[Batch]:
        rng = random.Random(f"{self.seed}:window:{number}")
        groups: list[Group] = []
        first = number * WINDOW_DIALOGUES
        total_share = sum(corpus.source.share for corpus in self.corpora)
        for corpus in self.corpora:
            # Up to position p a corpus has given floor(p * share) dialogues: even, and known without counting.
            share = corpus.source.share / total_share
            start, stop = (int(position * share) for position in (first, first + WINDOW_DIALOGUES))
            for cursor in range(start, stop):
                groups += self.groups(corpus, cursor)
        batches = bucketed_groups(groups, self.micro_tokens)
        if not any(batch.num_labels for batch in batches):
            names = ", ".join(str(corpus.source.path) for corpus in self.corpora)
            raise DataError(
                f"{names}: nothing to learn: the bot says nothing in it. `personabot inspect` shows who does."
            )
        rng.shuffle(batches)
        return batches

    def num_pass_tokens(self, most: int) -> float:
        """Return the tokens of a pass over the data: counted where it has up to `most` tellings, else estimated."""
        total = sum(corpus.num_tellings for corpus in self.corpora)
        total_share = sum(corpus.source.share for corpus in self.corpora)
        counted = min(total, most)
        num_tokens = sum(
            len(row.ids)
            for corpus in self.corpora
            for cursor in range(round(counted * corpus.source.share / total_share))
            for group in self.groups(corpus, cursor)
            for row in group.rows
        )
        return num_tokens * total / counted

    def groups(self, corpus: Corpus, cursor: int) -> list[Group]:
        """Return what the dialogue at `cursor` of a corpus gives to train on."""
        dialogue, is_flipped = self._dialogue(corpus, cursor)
        varied = vary(dialogue.flipped() if is_flipped else dialogue, corpus.source, f"{self.seed}:{cursor}")
        encode = self.layout.examples_of
        if self.max_history is not None:
            encode = partial(self.layout.examples_per_reply, max_history=self.max_history)
        examples = encode(
            varied.facts, varied.turns, max_tokens=self.max_tokens, roles=self.roles, untrained=varied.untrained
        )
        if self.num_candidates == 1:
            return [Group([example]) for example in examples]
        role = Role.USER if is_flipped else Role.BOT
        return [
            self._question(example, varied, corpus, role, f"{self.seed}:candidates:{corpus.key}:{cursor}:{index}")
            for index, example in enumerate(examples)
        ]

    def _question(self, example: Example, dialogue: Dialogue, corpus: Corpus, role: Role, key: str) -> Group:
        """Ask for one reply of the example; without a question where it has none, or nothing competes with it."""
        rng = random.Random(key)
        if not example.replies:
            return Group([example])
        reply = rng.choice(example.replies)
        wrong = wrong_replies(dialogue, reply.turn, corpus.dialogues, role, number=self.num_candidates - 1, rng=rng)
        if len(wrong) < self.num_candidates - 1:
            return Group([example])
        rows, ends = [example], [(0, reply.stop)]
        room = self.max_tokens - reply.start
        for text in wrong:
            *said, stop = self.layout.reply_ids(text)
            ids = [*example.ids[: reply.start], *said[: room - 1], stop]
            ends.append((len(rows), len(ids) - 1))
            rows.append(Example(ids, [Part.CONTEXT] * len(ids)))
        return Group(rows, ends)

    def _dialogue(self, corpus: Corpus, cursor: int) -> tuple[Dialogue, bool]:
        """Return the dialogue at `cursor` and whether it is told from the first speaker's side."""
        epoch, index = divmod(cursor, corpus.num_tellings)
        order = _order(corpus.num_tellings, f"{self.seed}:{corpus.key}:{epoch}")
        item, side = corpus.tellings[order[index]]
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
    if source.shuffle_facts:
        # A generator of its own, so that nothing else changes with it.
        order = random.Random(f"{key}:{source.path.name}:facts")
        dialogue = replace(dialogue, facts=tuple(order.sample(dialogue.facts, len(dialogue.facts))))
    return dialogue


def bucketed(examples: Sequence[Example], micro_tokens: int) -> list[Batch]:
    """Group examples of similar length so that a batch, padded, holds at most `micro_tokens` tokens."""
    return bucketed_groups([Group([example]) for example in examples], micro_tokens)


def bucketed_groups(groups: Sequence[Group], micro_tokens: int) -> list[Batch]:
    """Do the same with groups, none of which is parted; a group that is larger by itself is a batch by itself."""
    batches: list[Batch] = []
    chosen: list[Group] = []
    num_rows = 0
    for length, group in sorted(((max(len(row.ids) for row in g.rows), g) for g in groups), key=lambda pair: pair[0]):
        if chosen and (num_rows + len(group.rows)) * length > micro_tokens:
            batches.append(_batch(chosen))
            chosen, num_rows = [], 0
        chosen.append(group)
        num_rows += len(group.rows)
    return [*batches, _batch(chosen)] if chosen else batches


def _batch(groups: Sequence[Group]) -> Batch:
    rows: list[Example] = []
    choices: list[list[Place]] = []
    for group in groups:
        if group.ends:
            choices.append([(len(rows) + row, column) for row, column in group.ends])
        rows += group.rows
    return Batch([row.ids for row in rows], [row.parts for row in rows], choices)
