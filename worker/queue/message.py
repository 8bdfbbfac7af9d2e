"""What travels through the queue: a message on its way in, what a worker takes, what comes back through the outbox."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

from personas.conversation import Conversation, Turn
from personas.store import ChannelSettings, decode_turn, encode_turn

MAX_DEATHS: Final = 2


class Kind(StrEnum):
    """What a person asks for."""

    SAY = "say"
    REGENERATE = "regenerate"


@dataclass(frozen=True, slots=True)
class Message:
    """A turn addressed to the bot. `deadline` is in Unix seconds, 0 for none; `reply_to` is what the answer replies to.

    `server` is whose other conversations it shares its turn with, "" where a place belongs to no server. `is_watched`
    where somebody wants to see the reply come: its pieces are told as well (see `pieces`).

    For "regenerate" the turn only says who asked; it does not enter the history.
    """

    conversation: Conversation
    turn: Turn
    deadline: float = 0.0
    kind: str = Kind.SAY
    reply_to: str = ""
    is_group: bool = False
    server: str = ""
    is_watched: bool = False
    submitted_at: float = field(default_factory=time.time)

    @property
    def author(self) -> str:
        """Whose turns may be answered together with this one."""
        return self.turn.author_id or self.turn.name

    def to_json(self) -> str:
        """Return one line of JSON; the turn is JSON within it, ready to be moved into the history."""
        return json.dumps(
            {
                "turn": encode_turn(self.turn),
                "author": self.author.encode("utf-8", "replace").decode(),
                "kind": self.kind,
                "deadline": self.deadline,
                "reply_to": self.reply_to,
                "is_group": self.is_group,
                "server": self.server,
                "is_watched": self.is_watched,
                "submitted_at": self.submitted_at,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, conversation: Conversation, line: str) -> Self:
        """Invert `to_json`. Raises ValueError for no message."""
        data = json.loads(line.encode())  # which half surrogates, bytes that were no UTF-8, do not survive
        try:
            return cls(
                conversation=conversation,
                turn=decode_turn(data["turn"]),
                deadline=float(data["deadline"]),
                kind=Kind(data["kind"]),
                reply_to=data["reply_to"],
                is_group=bool(data["is_group"]),
                server=data.get("server", ""),
                is_watched=data.get("is_watched", False),
                submitted_at=float(data["submitted_at"]),
            )
        except (KeyError, TypeError, AttributeError):
            raise ValueError("expected a message: a JSON object with a turn, a kind and two times") from None


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a message. `fence` is set when it made a claim, and so a task.

    `position`: how many conversations wait for a worker before this one. `num_workers`: how many workers are alive.
    A duplicate was accepted before and changes nothing.
    """

    fence: int | None
    position: int = 0
    is_duplicate: bool = False
    num_workers: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What a worker has to answer: the conversation so far, and the messages that wait for this one reply.

    `turns` ends with the messages' turns. When `kind` is "regenerate" the old reply is `replaced` and not among them;
    `replaced_line` is that turn as Redis has it. `settings_hashes` are the fields of the place's settings and of the
    conversation's own, also as Redis has them: what cannot be read there is found only where a notice can say so.
    """

    conversation: Conversation
    fence: int
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    settings_hashes: tuple[dict[str, str], ...] = ()
    num_deaths: int = 0
    replaced_line: str = ""

    @property
    def settings(self) -> ChannelSettings:
        """The conversation's own settings over those of its place; ValueError where they cannot be read."""
        return ChannelSettings.from_hashes(*self.settings_hashes)

    @property
    def replaced(self) -> Turn | None:
        """The reply that a new one is to take the place of."""
        return decode_turn(self.replaced_line) if self.replaced_line else None

    @property
    def is_poisonous(self) -> bool:
        """Whether answering these messages killed so many workers that it is not tried again."""
        return self.num_deaths >= MAX_DEATHS

    @property
    def kind(self) -> str:
        """What the messages ask for; they all ask for the same."""
        return self.messages[-1].kind

    @property
    def group(self) -> tuple[str, str]:
        """Between what the model takes turns: the server, and within it the conversation."""
        return self.messages[-1].server or str(self.conversation), str(self.conversation)

    @property
    def deadline(self) -> float:
        """The latest deadline of the messages, 0 if one of them has none."""
        deadlines = [message.deadline for message in self.messages]
        return max(deadlines) if all(deadlines) else 0.0


class EntryKind(StrEnum):
    """What an adapter finds in its outbox."""

    REPLY = "reply"
    REGENERATED = "regenerated"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """Something to deliver. `id` is the stream's id, unique and at most 25 characters: Discord's nonce.

    `reply_id` is what `ConversationStore.set_message_id` wants; `reply_to` the platform message it answers;
    `replaces` the platform message of the reply that this one takes the place of, "" if unknown.
    """

    conversation: Conversation
    kind: str
    text: str
    persona: str = ""
    reply_to: str = ""
    replaces: str = ""
    reply_id: str = ""
    seed: int | None = None
    model: str = ""
    id: str = ""

    def to_json(self) -> str:
        """Return the entry as one line of JSON, without the id that the stream gives it."""
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "id"}
        data |= {"conversation": str(self.conversation), "text": self.text.encode("utf-8", "replace").decode(), "v": 1}
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_json(cls, entry_id: str, line: str) -> Self:
        """Invert `to_json`; unknown keys are ignored so that older readers survive."""
        data = json.loads(line)
        names = set(cls.__dataclass_fields__) - {"id", "conversation"}
        known = {name: value for name, value in data.items() if name in names}
        return cls(conversation=Conversation.parse(data["conversation"]), id=entry_id, **known)
