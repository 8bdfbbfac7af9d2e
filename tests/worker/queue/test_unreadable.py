"""Lines in Redis that are no messages: nobody's reply waits for them, and nobody's words get into the log."""

from __future__ import annotations

import pytest
import redis
from structlog.testing import capture_logs

from personas.conversation import Conversation, Role, Turn
from personas.store import ConversationStore, history_key
from worker.queue import keys
from worker.queue.mailbox import Mailbox
from worker.queue.message import EntryKind, Message, OutboxEntry

ROOM = Conversation("telegram", "-100123", "7")
UNREADABLE = (
    "my secret",
    '0 {"turn": "my secret',
    '0 ["my secret"]',
    '0 {"turn": {"text": "my secret"}}',
    '0 {"turn": "my secret", "kind": "say"}',
    "my secret \udcff",  # a byte that is no UTF-8
)


@pytest.fixture
def mailbox(redis_client: redis.Redis) -> Mailbox:
    return Mailbox(redis_client, worker="w1")


def say(text: str) -> Message:
    return Message(ROOM, Turn(Role.USER, text, name="Ann", author_id="ann"))


def reply(text: str) -> OutboxEntry:
    return OutboxEntry(ROOM, EntryKind.REPLY, text, persona="Ada")


@pytest.mark.parametrize("line", UNREADABLE)
@pytest.mark.parametrize("place", ["first", "between", "pending"])
def test_a_line_that_is_no_message_is_set_aside_and_the_others_are_answered(
    mailbox: Mailbox, redis_client: redis.Redis, line: str, place: str
) -> None:
    fence = mailbox.submit(say("one")).fence or 0
    mailbox.submit(say("two"))
    waiting = keys.mailbox_key(ROOM)
    match place:
        case "first":
            redis_client.lpush(waiting, line)
        case "between":
            redis_client.linsert(waiting, "AFTER", str(redis_client.lindex(waiting, 0)), line)
        case "pending":
            redis_client.rpush(keys.pending_key(ROOM), line)
    with capture_logs() as logged:
        taken = mailbox.take(ROOM, fence)
        assert taken is not None
        left = mailbox.finish(taken, reply("ok")).next
    assert left is None or [message.turn.text for message in left.messages] == ["two"]
    assert taken.turns[0].text == "one"
    assert redis_client.lrange(keys.DEAD, 0, -1) == [f"{ROOM} {line}"]
    assert [entry["number"] for entry in logged] == [1]
    assert "secret" not in repr(logged)
    if left is not None:
        mailbox.finish(left, reply("fine"))
    said = [turn.text for turn in ConversationStore(redis_client).history(ROOM) if turn.role is Role.USER]
    assert said == ["one", "two"]
    assert not redis_client.exists(keys.claim_key(ROOM))


def test_where_no_line_is_a_message_the_conversation_is_let_go(mailbox: Mailbox, redis_client: redis.Redis) -> None:
    fence = mailbox.submit(say("one")).fence or 0
    redis_client.delete(keys.mailbox_key(ROOM))
    redis_client.rpush(keys.mailbox_key(ROOM), *UNREADABLE)
    assert mailbox.take(ROOM, fence) is None
    assert redis_client.llen(keys.DEAD) == len(UNREADABLE)
    assert not redis_client.exists(keys.claim_key(ROOM))
    assert mailbox.submit(say("two")).fence


@pytest.mark.parametrize("harmed", [b'{"role": "user", "te', b"\xff", b'{"role": "user", "text": "my secret \xff"}'])
def test_a_turn_that_cannot_be_read_is_left_out_and_the_others_are_remembered(
    mailbox: Mailbox, redis_client: redis.Redis, harmed: bytes
) -> None:
    redis_client.rpush(history_key(ROOM), harmed)
    fence = mailbox.submit(say("one")).fence or 0
    with capture_logs() as logged:
        assert [turn.text for turn in ConversationStore(redis_client).history(ROOM)] == []
        taken = mailbox.take(ROOM, fence)
    assert taken is not None
    assert [turn.text for turn in taken.turns] == ["one"]
    assert [entry["number"] for entry in logged] == [1, 1]
    assert "secret" not in repr(logged)


def test_a_message_with_bytes_that_are_no_text_is_set_aside(mailbox: Mailbox, redis_client: redis.Redis) -> None:
    fence = mailbox.submit(say("one secret")).fence or 0
    key = keys.mailbox_key(ROOM)
    line = str(redis_client.lindex(key, 0)).replace("secret", "secret \udcff")
    redis_client.lset(key, 0, line)
    assert mailbox.take(ROOM, fence) is None
    assert redis_client.llen(keys.DEAD) == 1
    assert mailbox.submit(say("two")).fence
