"""What every layout shares: turns as blocks, what fits the window, and how text of people stays text."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import Tokenizer

from personas.conversation import Role, Turn
from personas.persona import ExampleTurn

LAYOUT_FILE = "layout.json"
MAX_NAME_CHARS = 32
# Cutting down to three quarters at a time keeps the start of the prompt, and so a cached prefix, for many turns.
KEPT_SHARE = 0.75
# An over-long persona may take half of the window; what is left is for the dialogue.
PERSONA_SHARE = 0.5


class Part(IntEnum):
    """What a token is for the loss: not predicted, the text of a turn, or the token that ends it."""

    CONTEXT = 0
    TEXT = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids that end where the reply begins, and what had to be left out to fit the window."""

    ids: list[int]
    num_dropped_turns: int = 0
    num_dropped_facts: int = 0
    is_last_turn_cut: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One encoded turn: ids with the `Part` of each."""

    ids: list[int]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Example:
    """A training sequence: ids, and the `Part` that each plays (CONTEXT carries no loss)."""

    ids: list[int]
    parts: list[Part]


class Layout(ABC):
    """Turns facts and turns into ids. `max_tokens` is the window it was trained for."""

    name: str
    version: int = 1

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int) -> None:
        text = (
            folder_or_tokenizer
            if isinstance(folder_or_tokenizer, str)
            else (folder_or_tokenizer / "tokenizer.json").read_text(encoding="utf-8")
        )
        self.max_tokens = max_tokens
        self._markup = Tokenizer.from_str(text)
        self._plain = Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True

    @property
    @abstractmethod
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a reply."""

    @property
    @abstractmethod
    def banned_ids(self) -> frozenset[int]:
        """The ids that may never be sampled within a reply."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """The id that fills batches."""

    @abstractmethod
    def prefix(self, facts: Sequence[str]) -> list[int]:
        """Encode what precedes the first turn."""

    @abstractmethod
    def block(self, role: Role, text: str) -> Block:
        """Encode one turn with its speaker mark and its end."""

    @abstractmethod
    def reply_header(self) -> list[int]:
        """Encode what stands before the first token of a reply."""

    def encode(self, text: str) -> list[int]:
        """Encode text that a person wrote: special tokens in it are plain characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """Decode a reply, without markup."""
        drop = self.stop_ids | self.banned_ids
        decoded: str = self._markup.decode([i for i in ids if i not in drop], skip_special_tokens=False)
        return decoded.strip()

    @property
    def vocabulary_size(self) -> int:
        """The number of ids the tokenizer can produce."""
        size: int = self._markup.get_vocab_size(with_added_tokens=True)
        return size

    def prompt(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        reserve: int,
        examples: Sequence[ExampleTurn] = (),
    ) -> Prompt:
        """Encode the prompt for the next reply within `max_tokens - reserve` tokens.

        What does not fit goes in this order: example dialogue, oldest turns (whole, in chunks), trailing facts,
        and only for a last turn that is longer than the window by itself, the beginning of that turn.
        """
        budget = max_tokens - min(reserve, max_tokens // 2) - len(self.reply_header())
        kept_facts = self._fitting_facts(facts, int(budget * PERSONA_SHARE))
        head = self.prefix(kept_facts)
        blocks = [self.block(role, text).ids for role, text in merged(turns)]
        room = budget - len(head)
        start = first_kept([len(ids) for ids in blocks], room)
        num_dropped = _num_turns_before(turns, start)
        tail = list(itertools.chain.from_iterable(blocks[start:]))
        is_cut = len(tail) > room
        if is_cut:
            tail = self._shortened(turns, room)
        else:
            shown = self._example_ids(examples)
            if not start and len(shown) + len(tail) <= room:
                head = head + shown
        return Prompt(head + tail + self.reply_header(), num_dropped, len(facts) - len(kept_facts), is_cut)

    def examples_of(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
    ) -> list[Example]:
        """Encode a dialogue for training: every turn of `roles` is a target exactly once.

        A dialogue longer than `max_tokens` becomes several examples; each later one repeats the persona and
        the latest turns as context. A turn too long for the window is left out together with what precedes it.
        """
        head = self.prefix(self._fitting_facts(facts, int(max_tokens * PERSONA_SHARE)))
        room = max_tokens - len(head)
        examples: list[Example] = []
        window: list[Block] = []
        num_fresh = 0
        for role, text in merged(turns):
            block = self.block(role, text)
            if role not in roles:
                block = Block(block.ids, [Part.CONTEXT] * len(block.ids))
            if len(block.ids) > room:
                examples += self._example(head, window, num_fresh)
                window, num_fresh = [], 0
                continue
            if sum(len(b.ids) for b in window) + len(block.ids) > room:
                examples += self._example(head, window, num_fresh)
                lengths = [len(b.ids) for b in (*window, block)]
                keep_from = first_kept(lengths, room, kept_share=0.5)
                window, num_fresh = window[keep_from:], 0
            window.append(block)
            num_fresh += 1
        return examples + self._example(head, window, num_fresh)

    def _example(self, head: list[int], window: Sequence[Block], num_fresh: int) -> list[Example]:
        stale = len(window) - num_fresh
        ids, parts = list(head), [Part.CONTEXT] * len(head)
        for index, block in enumerate(window):
            ids += block.ids
            parts += block.parts if index >= stale else [Part.CONTEXT] * len(block.ids)
        return [Example(ids, parts)] if any(parts) else []

    def _fitting_facts(self, facts: Sequence[str], budget: int) -> list[str]:
        kept = [fact.strip() for fact in facts if fact.strip()]
        while kept and len(self.prefix(kept)) > budget:
            kept.pop()
        return kept

    def _example_ids(self, examples: Sequence[ExampleTurn]) -> list[int]:
        pairs = [((Role.USER, e.user), (Role.BOT, e.bot)) for e in examples]
        return [i for pair in pairs for role, text in pair for i in self.block(role, text).ids]

    def _shortened(self, turns: Sequence[Turn], room: int) -> list[int]:
        """Encode only the last turn, without as much of its beginning as does not fit."""
        role, text = list(merged(turns))[-1]
        frame = len(self.block(role, "").ids)
        kept = self.encode(text)[-max(room - frame, 0) :]
        while kept:
            ids = self.block(role, self._markup.decode(kept, skip_special_tokens=False)).ids
            if len(ids) <= room:  # decoding half a character can lengthen the text again
                return ids
            kept = kept[max(len(ids) - room, 1) :]
        return self.block(role, "").ids

    def write(self, folder: Path) -> None:
        """Write `layout.json` and `tokenizer.json`."""
        data = {"name": self.name, "version": self.version, "max_tokens": self.max_tokens}
        (folder / LAYOUT_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(self._markup.to_str(pretty=False), encoding="utf-8")


def merged(turns: Sequence[Turn]) -> Iterable[tuple[Role, str]]:
    """Join each speaker's messages in a row with newlines; where several people talk, put their names first."""
    people = {turn.author_id or turn.name for turn in turns if turn.role is Role.USER}
    for (role, _), group in itertools.groupby(
        turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else "")
    ):
        same = list(group)
        text = "\n".join(turn.text.strip() for turn in same)
        name = " ".join(same[0].name.split())[:MAX_NAME_CHARS].rstrip(": ")
        yield role, f"{name}: {text}" if role is Role.USER and len(people) > 1 and name else text


def first_kept(lengths: Sequence[int], budget: int, *, kept_share: float = KEPT_SHARE) -> int:
    """Return the index of the first block to keep so that the kept ones fit `budget`; the last is always kept.

    Blocks are counted as they came. On overflow the oldest go until `kept_share` of the budget is left, so the
    answer stays the same for several turns, and with it the beginning of the prompt.
    """
    start = total = 0
    for index, length in enumerate(lengths):
        total += length
        if total > budget:
            while start < index and total > budget * kept_share:
                total -= lengths[start]
                start += 1
    return start


def _num_turns_before(turns: Sequence[Turn], num_blocks: int) -> int:
    """Count the turns in the first `num_blocks` merged blocks."""
    groups = itertools.groupby(turns, key=lambda t: (t.role, t.author_id if t.role is Role.USER else ""))
    return sum(len(list(group)) for _, group in itertools.islice(groups, num_blocks))
