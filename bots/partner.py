"""The partner of a chat whose model is in this process. Owns the conversation and the seeds; knows no model."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence

from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from worker.queue.reply import Reply, Tell

Speak = Callable[[Persona, Sequence[Turn], GenerationSettings, Tell | None], Reply]


class LocalPartner:
    """Keeps the conversation in memory and lets `speak` answer.

    Where the settings have a seed, each reply's own derives from it and from the reply's position.
    """

    def __init__(self, speak: Speak, persona: Persona, *, settings: GenerationSettings) -> None:
        self.persona = persona
        self.settings = settings
        self.turns: list[Turn] = []
        self._speak = speak
        self._num_replies = 0
        self.reset()

    @property
    def num_turns(self) -> int:
        """How many messages were answered in this conversation."""
        return sum(turn.role is Role.USER for turn in self.turns)

    def say(self, text: str, tell: Tell | None = None) -> Reply:
        """Answer one message; nothing is remembered of a message that could not be answered."""
        self.turns.append(Turn(Role.USER, text))
        try:
            return self._answer(tell)
        except BaseException:
            del self.turns[-1]
            raise

    def regenerate(self, tell: Tell | None = None) -> Reply | None:
        """Answer the last message again with another seed; None where there is nothing to answer."""
        if len(self.turns) < 2 or self.turns[-1].role is not Role.BOT or self.turns[-2].role is not Role.USER:
            return None
        last = self.turns.pop()
        try:
            return self._answer(tell)
        except BaseException:
            self.turns.append(last)
            raise

    def reset(self) -> None:
        """Begin a new conversation, with the persona's greeting where it has one."""
        greeting = self.persona.greeting
        self.turns = [Turn(Role.BOT, greeting, name=self.persona.name)] if greeting else []

    def become(self, persona: Persona) -> None:
        """Let another persona take over, in a new conversation."""
        self.persona = persona
        self.reset()

    def tune(self, settings: GenerationSettings) -> None:
        """Sample with `settings` from now on."""
        self.settings = settings

    def _answer(self, tell: Tell | None) -> Reply:
        chosen = self.settings.seed
        seed = secrets.randbits(32) if chosen is None else derived_seed(chosen, self._num_replies)
        reply = self._speak(self.persona, tuple(self.turns), self.settings.model_copy(update={"seed": seed}), tell)
        self._num_replies += 1
        self.turns.append(Turn(Role.BOT, reply.text, name=self.persona.name))
        return reply


def derived_seed(seed: int, position: int) -> int:
    """Return the seed of the reply at `position`, unrelated to its neighbours' (32 bits)."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{position}".encode()).digest()[:4], "big")
