"""The layout `persona` of the GPT-2 family: added tokens, speakers by role, no token types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from personas.conversation import Role
from personas.errors import LayoutError
from personas.layout.base import Layout
from personas.layout.shapes import Block, Part

PERSONA_TOKENS = ("<pad>", "<bos>", "<eos>", "<speaker1>", "<speaker2>")


class PersonaLayout(Layout):
    """`<bos> facts (<speaker2> user <eos> | <speaker1> bot <eos>)*` for the GPT-2 family."""

    name = "persona"

    def __init__(self, folder_or_tokenizer: Path | str, *, max_tokens: int) -> None:
        super().__init__(folder_or_tokenizer, max_tokens=max_tokens)
        found = [self._markup.token_to_id(token) for token in PERSONA_TOKENS]
        ids = [i for i in found if i is not None]
        if len(ids) < len(PERSONA_TOKENS):
            missing = [t for t, i in zip(PERSONA_TOKENS, found, strict=True) if i is None]
            raise LayoutError(
                f"layout persona: the tokenizer lacks {', '.join(missing)}. Train with this layout, or choose another."
            )
        self._pad, self._bos, self._eos, self._bot, self._user = ids

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self._eos})

    @property
    def banned_ids(self) -> frozenset[int]:
        return frozenset({self._pad, self._bos, self._bot, self._user})

    @property
    def pad_id(self) -> int:
        return self._pad

    def prefix(self, facts: Sequence[str]) -> list[int]:
        return [self._bos, *self.encode(" ".join(facts))]

    def block(self, role: Role, text: str) -> Block:
        ids = self.encode(text)
        speaker = self._bot if role is Role.BOT else self._user
        return Block([speaker, *ids, self._eos], [Part.CONTEXT, *[Part.TEXT] * len(ids), Part.STOP])

    def reply_header(self) -> list[int]:
        return [self._bot]
