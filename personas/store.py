"""Conversations and channel settings in Redis: the history of each conversation, and who speaks in it how.

Owns the keys below. Knows nothing of the queue; the queue learns from `state` that a history was begun anew.

    history:{conversation}    list of turns as JSON, oldest first
    settings:{conversation}   hash: persona, generation (JSON), answers_all
    state:{conversation}      hash: epoch (grows when the history is begun anew), resets (grows when it is forgotten)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self, cast

import redis
import structlog
from pydantic import BaseModel, ConfigDict

from personas.conversation import Conversation, Role, Turn
from personas.persona import GenerationSettings

log = structlog.get_logger(__name__)

# Cut in chunks: between two cuts the history only grows, so that a cached prefix of the prompt stays valid.
MAX_TURNS: Final = 240
TURNS_AFTER_CUT: Final = 160
# A bot turn carries this mark and the reply's number until its platform message id is known.
REPLY_MARK: Final = "reply:"


def history_key(conversation: Conversation | str) -> str:
    """Return the key of the conversation's turns."""
    return f"history:{conversation}"


def settings_key(conversation: Conversation | str) -> str:
    """Return the key of the channel's settings."""
    return f"settings:{conversation}"


def state_key(conversation: Conversation | str) -> str:
    """Return the key of the counters that tell a begun-anew history from the one before."""
    return f"state:{conversation}"


class ChannelSettings(BaseModel):
    """What was chosen for one conversation; "" and None mean "not chosen here"."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    persona: str = ""
    generation: GenerationSettings = GenerationSettings()
    answers_all: bool = False

    @classmethod
    def from_hash(cls, data: Mapping[str, str]) -> Self:
        """Rebuild settings written by `to_hash`."""
        return cls(
            persona=data.get("persona", ""),
            generation=GenerationSettings.model_validate_json(data.get("generation") or "{}"),
            answers_all=data.get("answers_all") == "1",
        )

    @classmethod
    def from_hashes(cls, *hashes: Mapping[str, str]) -> Self:
        """Rebuild settings of which a later hash leaves to the earlier ones what it does not say itself."""
        said = [{name: value for name, value in data.items() if value not in ("", "{}")} for data in hashes]
        return cls.from_hash({name: value for data in said for name, value in data.items()})

    def to_hash(self) -> dict[str, str]:
        """Return the settings as the fields of a Redis hash."""
        return {
            "persona": self.persona,
            "generation": self.generation.model_dump_json(exclude_none=True),
            "answers_all": "1" if self.answers_all else "0",
        }


_BEGIN_ANEW: Final = """
-- KEYS history, state, settings; ARGV persona, greeting turn, '1' to forget what waits for an answer as well
redis.call('DEL', KEYS[1])
redis.call('HINCRBY', KEYS[2], 'epoch', 1)
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[2], 'resets', 1) end
if ARGV[1] ~= '' then redis.call('HSET', KEYS[3], 'persona', ARGV[1]) end
if ARGV[2] ~= '' then redis.call('RPUSH', KEYS[1], ARGV[2]) end
"""

_SET_MESSAGE_ID: Final = """
-- KEYS history; ARGV the mark and the message id, both as they stand in the turn's JSON; looks at the newest 50 turns
for index = -1, -50, -1 do
  local turn = redis.call('LINDEX', KEYS[1], index)
  if not turn then return 0 end
  local from, to = string.find(turn, ARGV[1], 1, true)
  if from then
    redis.call('LSET', KEYS[1], index, string.sub(turn, 1, from - 1) .. ARGV[2] .. string.sub(turn, to + 1))
    return 1
  end
end
return 0
"""

_MOVE: Final = """
-- KEYS old, new, old, new, ...
for index = 1, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[index]) == 1 then redis.call('RENAMENX', KEYS[index], KEYS[index + 1]) end
end
"""


class ConversationStore:
    """The conversations in one Redis. Every method is one round trip, and atomic."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._begin_anew = client.register_script(_BEGIN_ANEW)
        self._set_message_id = client.register_script(_SET_MESSAGE_ID)
        self._move = client.register_script(_MOVE)

    def history(self, conversation: Conversation, limit: int = MAX_TURNS) -> list[Turn]:
        """Return the newest `limit` turns, oldest first."""
        lines = cast("list[str]", self._redis.lrange(history_key(conversation), -limit, -1))
        return [turn for _, turn in readable_turns(conversation, lines)]

    def append(self, conversation: Conversation, turn: Turn) -> None:
        """Add a turn that did not come through the queue, such as a greeting."""
        self._redis.rpush(history_key(conversation), encode_turn(turn))

    def reset(self, conversation: Conversation, greeting: Turn | None = None) -> None:
        """Forget the history, what waits for an answer, and the reply under way; start with `greeting` if given."""
        self._restart(conversation, persona="", greeting=greeting, forget=True)

    def set_persona(self, conversation: Conversation, name: str, greeting: Turn | None = None) -> None:
        """Let `name` take over with an empty history; what waits for an answer, it answers."""
        self._restart(conversation, persona=name, greeting=greeting, forget=False)

    def settings(self, conversation: Conversation) -> ChannelSettings:
        """Return the settings; a thread or topic takes what it does not say itself from the place it belongs to."""
        place = Conversation(conversation.platform, conversation.place)  # itself, where there is no thread
        return ChannelSettings.from_hashes(*map(self._fields, dict.fromkeys([place, conversation])))

    def set_settings(self, conversation: Conversation, settings: ChannelSettings) -> None:
        """Replace the settings, but not the history: to change the persona use `set_persona`."""
        self._redis.hset(settings_key(conversation), mapping=dict[Any, Any](settings.to_hash()))

    def set_message_id(self, conversation: Conversation, reply_id: str, message_id: str) -> bool:
        """Note under which platform message id the reply `reply_id` of the outbox was sent; False: it is gone."""
        args = [_message_id_field(REPLY_MARK + reply_id), _message_id_field(message_id)]
        return bool(self._set_message_id(keys=[history_key(conversation)], args=args))

    def move(self, old: Conversation, new: Conversation) -> None:
        """Give a conversation another address, such as a group that became a supergroup; `new` is not overwritten."""
        pairs = [(key_of(old), key_of(new)) for key_of in (history_key, settings_key, state_key)]
        self._move(keys=[key for pair in pairs for key in pair])

    def _fields(self, conversation: Conversation) -> dict[str, str]:
        return cast("dict[str, str]", self._redis.hgetall(settings_key(conversation)))

    def _restart(self, conversation: Conversation, *, persona: str, greeting: Turn | None, forget: bool) -> None:
        keys = [history_key(conversation), state_key(conversation), settings_key(conversation)]
        first = encode_turn(greeting) if greeting else ""
        self._begin_anew(keys=keys, args=[persona, first, "1" if forget else "0"])


def _message_id_field(message_id: str) -> str:
    return json.dumps({"message_id": message_id}, ensure_ascii=False)[1:-1]


def encode_turn(turn: Turn) -> str:
    """Return the turn as one line of JSON; half surrogates, which no database takes, become question marks."""
    data = {key: value.encode("utf-8", "replace").decode() for key, value in turn.to_dict().items()}
    return json.dumps(data, ensure_ascii=False)


def decode_turn(line: str) -> Turn:
    """Invert `encode_turn`; a bot turn that is not sent yet has no message id. Raises ValueError for no turn."""
    data = json.loads(line.encode())  # which half surrogates, bytes that were no UTF-8, do not survive
    if not isinstance(data, dict) or "role" not in data:
        raise ValueError("expected a turn: a JSON object with a role")
    if data.get("role") == Role.BOT and str(data.get("message_id", "")).startswith(REPLY_MARK):
        del data["message_id"]
    turn = Turn.from_dict(data)
    if not all(isinstance(value, str) for value in (turn.text, turn.name, turn.author_id, turn.message_id)):
        raise ValueError("expected a turn: every field of it a text")
    return turn


def readable_turns(
    conversation: Conversation, lines: Sequence[str], decode: Callable[[str], Turn] = decode_turn
) -> list[tuple[str, Turn]]:
    """Return the lines of a history, each with its turn; the log says how many are left out as no turns at all."""
    found = []
    for line in lines:
        try:
            found.append((line, decode(line)))
        except ValueError:
            continue
    if num_lost := len(lines) - len(found):
        log.warning("turns not readable, left out", conversation=str(conversation), number=num_lost)
    return found
