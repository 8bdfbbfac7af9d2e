"""What every layout shares: turns as blocks, what fits the window, and how text of people stays text."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from personas.conversation import Role, Turn
from personas.layout.shapes import Block, Example, Part, Prompt, Span
from personas.layout.turns import first_kept, merged, merged_counts, num_turns_before
from personas.persona import ExampleTurn

LAYOUT_FILE = "layout.json"
# An over-long persona may take half of the window; what is left is for the dialogue.
PERSONA_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Placed:
    """A merged turn, by its number, in the window of an example."""

    turn: int
    role: Role
    text: str
    block: Block
    is_target: bool


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

    def target(self, role: Role, text: str) -> Block:
        """Encode one turn that is to be learnt, with the token that ends it."""
        return self.block(role, text)

    def reply_ids(self, text: str) -> list[int]:
        """Encode a reply as it follows the reply header, up to and with the token that ends it."""
        block = self.target(Role.BOT, text)
        first = next(place for place, part in enumerate(block.parts) if part is not Part.CONTEXT)
        return block.ids[first : block.parts.index(Part.STOP) + 1]

    def token_types(self, ids: Sequence[int]) -> list[int] | None:
        """Return the token type of each id; None where the layout has none."""
        return None

    @abstractmethod
    def reply_header(self) -> list[int]:
        """Encode what stands before the first token of a reply."""

    def encode(self, text: str) -> list[int]:
        """Encode text that a person wrote: special tokens in it are plain characters."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """Decode a reply, without markup and without white space around it."""
        return self.decoded(ids).strip()

    def decoded(self, ids: Iterable[int]) -> str:
        """Decode what a reply holds so far, without markup."""
        drop = self.stop_ids | self.banned_ids
        decoded: str = self._markup.decode([i for i in ids if i not in drop], skip_special_tokens=False)
        return decoded

    def spelled(self, ids: Iterable[int]) -> str:
        """Decode ids with their markup, for people to look at."""
        decoded: str = self._markup.decode(list(ids), skip_special_tokens=False)
        return decoded

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
        num_dropped = num_turns_before(turns, start)
        tail = list(itertools.chain.from_iterable(blocks[start:]))
        is_cut = len(tail) > room
        if is_cut:
            tail = self._shortened(turns, room)
        else:
            shown = self._example_ids(examples)
            if not start and len(shown) + len(tail) <= room:
                head = head + shown
        ids = head + tail + self.reply_header()
        return Prompt(ids, num_dropped, len(facts) - len(kept_facts), is_cut, self.token_types(ids))

    def examples_of(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
        untrained: frozenset[int] = frozenset(),
    ) -> list[Example]:
        """Encode a dialogue for training: every turn of `roles` is a target exactly once.

        A dialogue longer than `max_tokens` becomes several examples; each later one repeats the persona and
        the latest turns as context. A turn too long for the window is left out together with what precedes it.
        `untrained` are indices of turns that are context whatever their role.
        """
        head = self.prefix(self._fitting_facts(facts, int(max_tokens * PERSONA_SHARE)))
        room = max_tokens - len(head)
        examples: list[Example] = []
        window: list[_Placed] = []
        num_fresh = 0
        for placed in self._placed(turns, roles, untrained):
            length = len(placed.block.ids)
            if length > room:
                examples += self._example(head, window, num_fresh)
                window, num_fresh = [], 0
                continue
            if sum(len(entry.block.ids) for entry in window) + length > room:
                examples += self._example(head, window, num_fresh)
                lengths = [len(entry.block.ids) for entry in (*window, placed)]
                keep_from = first_kept(lengths, room, kept_share=0.5)
                window, num_fresh = window[keep_from:], 0
            window.append(placed)
            num_fresh += 1
        return examples + self._example(head, window, num_fresh)

    def examples_per_reply(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
        untrained: frozenset[int] = frozenset(),
        max_history: int | None = None,
    ) -> list[Example]:
        """Encode every turn of `roles` as the only target of an example of its own, behind what fits before it.

        `max_history` bounds the context to the last `2 * max_history + 1` turns, as TransferTransfo counts them.
        A turn too long for the window is left out.
        """
        head = self.prefix(self._fitting_facts(facts, int(max_tokens * PERSONA_SHARE)))
        examples: list[Example] = []
        window: list[_Placed] = []
        for placed in self._placed(turns, roles, untrained):
            target = self.target(placed.role, placed.text)
            room = max_tokens - len(head) - len(target.ids)
            if placed.is_target and room >= 0:
                before = window if max_history is None else window[-(2 * max_history + 1) :]
                lengths = [len(entry.block.ids) for entry in before]
                start = first_kept(lengths, room)
                start += sum(lengths[start:]) > room  # the turn before is too long by itself
                examples += self._example(head, [*before[start:], replace(placed, block=target)], 1)
            window.append(placed)
        return examples

    def _placed(self, turns: Sequence[Turn], roles: frozenset[Role], untrained: frozenset[int]) -> Iterable[_Placed]:
        start = 0
        for number, ((role, text), count) in enumerate(zip(merged(turns), merged_counts(turns), strict=True)):
            block = self.block(role, text)
            is_target = role in roles and not untrained.issuperset(range(start, start + count))
            if not is_target:
                block = Block(block.ids, [Part.CONTEXT] * len(block.ids))
            start += count
            yield _Placed(number, role, text, block, is_target)

    def _example(self, head: list[int], window: Sequence[_Placed], num_fresh: int) -> list[Example]:
        stale = len(window) - num_fresh
        ids, parts = list(head), [Part.CONTEXT] * len(head)
        texts: list[str] = []
        replies: list[Span] = []
        for index, placed in enumerate(window):
            block = placed.block
            if index >= stale and placed.role is Role.BOT and Part.STOP in block.parts:
                first = next(i for i, part in enumerate(block.parts) if part is not Part.CONTEXT)
                replies.append(Span(len(ids) + first, len(ids) + block.parts.index(Part.STOP), placed.turn))
                texts.append(placed.text)
            ids += block.ids
            parts += block.parts if index >= stale else [Part.CONTEXT] * len(block.ids)
        return [Example(ids, parts, tuple(texts), tuple(replies))] if any(parts) else []

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
        (folder / "tokenizer.json").write_text(self.tokenizer_json(), encoding="utf-8")

    def tokenizer_json(self) -> str:
        """Return the tokenizer as the text of its file."""
        text: str = self._markup.to_str(pretty=False)
        return text
