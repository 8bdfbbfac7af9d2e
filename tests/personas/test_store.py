"""Conversations and channel settings in a real server."""

from __future__ import annotations

import pytest
import redis
from structlog.testing import capture_logs

from personas.conversation import Conversation, Role, Turn
from personas.persona import GenerationSettings
from personas.store import ChannelSettings, ConversationStore, history_key

ROOM = Conversation("discord", "42")
THREAD = Conversation("discord", "42", "7")
GREETING = Turn(Role.BOT, "hello, Ada here", name="Ada", message_id="99")


@pytest.fixture
def store(redis_client: redis.Redis) -> ConversationStore:
    return ConversationStore(redis_client)


def test_turns_come_back_as_they_were_in_order(store: ConversationStore) -> None:
    turns = [GREETING, Turn(Role.USER, "hi\n🦉", name="Ann", author_id="1", message_id="100")]
    for turn in turns:
        store.append(ROOM, turn)
    assert store.history(ROOM) == turns
    assert store.history(ROOM, limit=1) == turns[1:]


@pytest.mark.parametrize(
    "line", ['{"role": "user", "text": "my secret', "null", "[]", "{}", '{"role": "user", "text": 7}']
)
def test_a_turn_that_cannot_be_read_is_left_out_with_a_warning_that_does_not_quote_it(
    store: ConversationStore, redis_client: redis.Redis, line: str
) -> None:
    store.append(ROOM, GREETING)
    redis_client.rpush(history_key(ROOM), line)
    store.append(ROOM, GREETING)
    with capture_logs() as logged:
        assert store.history(ROOM) == [GREETING, GREETING]
    [warning] = logged
    assert (warning["log_level"], warning["conversation"], warning["number"]) == ("warning", str(ROOM), 1)
    assert line not in repr(warning)


def test_new_persona_starts_with_its_greeting_and_nothing_else(store: ConversationStore) -> None:
    store.append(ROOM, Turn(Role.USER, "hi"))
    store.set_persona(ROOM, "Ada", GREETING)
    assert store.history(ROOM) == [GREETING]
    assert store.settings(ROOM).persona == "Ada"


def test_reset_keeps_the_settings(store: ConversationStore) -> None:
    store.set_persona(ROOM, "Ada", GREETING)
    store.reset(ROOM)
    assert store.history(ROOM) == []
    assert store.settings(ROOM).persona == "Ada"


def test_settings_come_back_as_they_were(store: ConversationStore) -> None:
    chosen = ChannelSettings(persona="Ada", generation=GenerationSettings(top_k=5), answers_all=True)
    store.set_settings(ROOM, chosen)
    assert store.settings(ROOM) == chosen


def test_thread_takes_what_it_does_not_say_from_its_channel(store: ConversationStore) -> None:
    store.set_settings(ROOM, ChannelSettings(persona="Ada", generation=GenerationSettings(top_k=5)))
    store.set_persona(THREAD, "Bess")
    settings = store.settings(THREAD)
    assert (settings.persona, settings.generation.top_k) == ("Bess", 5)
    assert store.settings(ROOM).persona == "Ada"


def test_message_id_of_a_reply_that_is_gone_is_not_noted(store: ConversationStore) -> None:
    store.append(ROOM, GREETING)
    assert not store.set_message_id(ROOM, "1", "m")
    assert store.history(ROOM) == [GREETING]


def test_message_id_is_noted_with_the_reply_it_belongs_to(store: ConversationStore) -> None:
    for number in (1, 2):
        store.append(ROOM, Turn(Role.BOT, f'say "message_id": "reply:{number}"', message_id=f"reply:{number}"))
    assert store.set_message_id(ROOM, "1", 'm"1')
    assert [turn.message_id for turn in store.history(ROOM)] == ['m"1', ""]
