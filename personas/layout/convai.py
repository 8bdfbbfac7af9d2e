"""The layout `convai`: TransferTransfo's, as huggingface/transfer-learning-conv-ai published it (Wolf et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from personas.conversation import Role, Turn
from personas.layout.persona import PersonaLayout
from personas.layout.shapes import Block, Example, Part


class ConvaiLayout(PersonaLayout):
    """`<bos> facts (<speaker2> user | <speaker1> bot)* <speaker1> reply <eos>`, with a token type for every token.

    A type is the speaker token of whoever says it; the persona is the bot's. Published code alternates types by
    position, counted from the front, and so contradicts its own speaker tokens where the bot speaks first or one
    side twice; here they go by role, which gives the same ids wherever that code is consistent.

    Only a reply ends with `<eos>`, so that every bot turn is an example of its own.
    """

    name = "convai"

    def block(self, role: Role, text: str) -> Block:
        speaker = self._bot if role is Role.BOT else self._user
        ids = [speaker, *self.encode(text)]
        return Block(ids, [Part.CONTEXT] * len(ids))

    def target(self, role: Role, text: str) -> Block:
        ids = self.block(role, text).ids
        return Block([*ids, self._eos], [Part.CONTEXT, *[Part.TEXT] * (len(ids) - 1), Part.STOP])

    def token_types(self, ids: Sequence[int]) -> list[int]:
        now, types = self._bot, []
        for token in ids:
            now = token if token in (self._bot, self._user) else now
            types.append(now)
        return types

    def examples_of(
        self,
        facts: Sequence[str],
        turns: Sequence[Turn],
        *,
        max_tokens: int,
        roles: frozenset[Role] = frozenset({Role.BOT}),
        untrained: frozenset[int] = frozenset(),
    ) -> list[Example]:
        return self.examples_per_reply(facts, turns, max_tokens=max_tokens, roles=roles, untrained=untrained)
