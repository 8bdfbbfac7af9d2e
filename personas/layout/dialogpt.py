"""The layout `dialogpt`: turns joined by the end-of-text token, for plain GPT-2, DialoGPT and other base models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from personas.conversation import Role
from personas.errors import LayoutError
from personas.layout.base import Layout
from personas.layout.shapes import Block, Part

# What base models call it; the first that the tokenizer has.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class DialogptLayout(Layout):
    """`facts <end> (turn <end>)*`: the facts stand where a first turn would, speakers show only by taking turns."""

    name = "dialogpt"

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int) -> None:
        super().__init__(folder_or_tokenizer, max_tokens=max_tokens)
        found = [self._markup.token_to_id(token) for token in END_TOKENS]
        ends = [token_id for token_id in found if token_id is not None]
        if not ends:
            raise LayoutError(f"layout dialogpt: the tokenizer has none of {', '.join(END_TOKENS)} to end a turn with")
        self._end = ends[0]
        added = self._markup.get_added_tokens_decoder()
        self._special = frozenset(int(i) for i, token in added.items() if token.special)

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self._end})

    @property
    def banned_ids(self) -> frozenset[int]:
        return self._special - self.stop_ids

    @property
    def pad_id(self) -> int:
        return self._end

    def prefix(self, facts: Sequence[str]) -> list[int]:
        return [*self.encode(" ".join(facts)), self._end]

    def block(self, role: Role, text: str) -> Block:
        ids = self.encode(text)
        return Block([*ids, self._end], [*[Part.TEXT] * len(ids), Part.STOP])

    def reply_header(self) -> list[int]:
        return []
