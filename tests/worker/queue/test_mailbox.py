"""The mailbox's steps against a real server, one behaviour at a time."""

from __future__ import annotations

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from personas.store import ConversationStore
from worker.queue import keys
from worker.queue.mailbox import Mailbox
from worker.queue.message import EntryKind, Kind, Message, OutboxEntry, Taken

ROOM = Conversation("telegram", "-100123", "7")


@pytest.fixture
def mailbox(redis_client: redis.Redis) -> Mailbox:
    return Mailbox(redis_client, worker="w1")


@pytest.fixture
def store(redis_client: redis.Redis) -> ConversationStore:
    return ConversationStore(redis_client)


def say(text: str, author: str = "ann", message_id: str = "", kind: str = Kind.SAY) -> Message:
    turn = Turn(Role.USER, text, name=author.title(), author_id=author, message_id=message_id)
    return Message(ROOM, turn, kind=kind, reply_to=message_id)


def reply(text: str, kind: str = EntryKind.REPLY) -> OutboxEntry:
    return OutboxEntry(ROOM, kind, text, persona="Ada")


def texts(taken: Taken | None) -> list[str]:
    assert taken is not None
    return [turn.text for turn in taken.turns]


def take_all(mailbox: Mailbox, *messages: Message) -> Taken:
    fences = [mailbox.submit(message).fence for message in messages]
    assert fences[0] is not None
    taken = mailbox.take(ROOM, fences[0])
    assert taken is not None
    return taken


def test_first_message_claims_the_conversation_and_the_second_waits(mailbox: Mailbox) -> None:
    assert mailbox.submit(say("hi")).fence is not None
    assert mailbox.submit(say("you there?")).fence is None


def test_message_seen_before_is_a_duplicate(mailbox: Mailbox) -> None:
    mailbox.submit(say("hi", message_id="1"))
    assert mailbox.submit(say("hi", message_id="1")).is_duplicate


def test_attempt_repeated_after_a_lost_answer_counts_once_and_gets_its_fence(mailbox: Mailbox) -> None:
    first = mailbox.submit(say("hi", message_id="1"), submission="s")
    again = mailbox.submit(say("hi", message_id="1"), submission="s")
    assert (again.fence, again.is_duplicate) == (first.fence, False)
    assert texts(mailbox.take(ROOM, first.fence or 0)) == ["hi"]


def test_turns_of_one_author_are_taken_together_and_another_author_waits(mailbox: Mailbox) -> None:
    taken = take_all(mailbox, say("one"), say("two"), say("three", author="bob"), say("four"))
    assert texts(taken) == ["one", "two"]
    second = mailbox.finish(taken, reply("ok")).next
    assert texts(second) == ["one", "two", "ok", "three"]


def test_reply_enters_history_and_outbox_and_releases_the_claim(
    mailbox: Mailbox, store: ConversationStore, redis_client: redis.Redis
) -> None:
    outcome = mailbox.finish(take_all(mailbox, say("hi")), reply("hello"))
    assert outcome.is_accepted
    assert outcome.next is None
    assert [turn.text for turn in store.history(ROOM)] == ["hi", "hello"]
    assert redis_client.xlen(keys.outbox_key("telegram")) == 1
    assert mailbox.submit(say("again")).fence is not None
