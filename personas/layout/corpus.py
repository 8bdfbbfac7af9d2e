"""The layout `corpus`: plain text of one voice, for models that go on with what somebody wrote."""

from __future__ import annotations

from collections.abc import Sequence

from personas.conversation import Role, Turn
from personas.layout.dialogpt import DialogptLayout
from personas.layout.shapes import Block, Example, Part
from personas.layout.turns import merged


class CorpusLayout(DialogptLayout):
    """`<end> text <end>`: no speakers and no facts; a turn of somebody else begins a line, and the voice goes on in it.

    A text whose last turn ends in white space goes on in the next one, and so gets no end token.
    """

    name = "corpus"

    def prefix(self, facts: Sequence[str]) -> list[int]:
        return [self._end]

    def block(self, role: Role, text: str) -> Block:
        ids = self.encode(f" {text}" if role is Role.BOT else f"\n{text}")
        return Block(ids, [Part.TEXT] * len(ids))

    def target(self, role: Role, text: str) -> Block:
        block = self.block(role, text)
        return Block([*block.ids, self._end], [*block.parts, Part.STOP])

    def examples_of(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
        untrained: frozenset[int] = frozenset(),
    ) -> list[Example]:
        """Encode a text in blocks of `max_tokens`, each behind an end token; every token of `roles` is a target."""
        ids: list[int] = []
        parts: list[Part] = []
        placed = list(merged(turns))
        last = turns[-1].text
        rest = last[len(last.rstrip()) :]
        for number, (role, text) in enumerate(placed, 1):
            is_last = number == len(placed)
            block = self.target(role, text) if is_last and not rest else self.block(role, text + rest * is_last)
            ids += block.ids
            parts += block.parts if role in roles else [Part.CONTEXT] * len(block.ids)
        texts = tuple(text for role, text in placed if role is Role.BOT)
        size = max_tokens - 1
        return [
            Example(
                [self._end, *ids[start : start + size]],
                [Part.CONTEXT, *parts[start : start + size]],
                () if start else texts,
            )
            for start in range(0, len(ids), size)
            if any(parts[start : start + size])
        ]
