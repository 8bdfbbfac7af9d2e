"""The mailbox's steps against a real server, one behaviour at a time."""

from __future__ import annotations

import pytest
import redis
from structlog.testing import capture_logs

from personas.conversation import Conversation, Role, Turn
from personas.store import MAX_TURNS, TURNS_AFTER_CUT, ConversationStore, history_key
from tests.helpers.answering import arguments
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


def test_fence_that_was_taken_is_worth_nothing_a_second_time(mailbox: Mailbox) -> None:
    taken = take_all(mailbox, say("hi"))
    assert mailbox.take(ROOM, taken.fence) is None
    mailbox.finish(taken, reply("hello"))
    assert mailbox.take(ROOM, taken.fence) is None


def test_next_messages_get_a_new_fence(mailbox: Mailbox) -> None:
    taken = take_all(mailbox, say("one"), say("two", author="bob"))
    following = mailbox.finish(taken, reply("ok")).next
    assert following is not None
    assert following.fence > taken.fence


def test_worker_that_stops_leaves_the_rest_to_a_task_with_a_new_fence(
    mailbox: Mailbox, redis_client: redis.Redis
) -> None:
    taken = take_all(mailbox, say("one"), say("two", author="bob"))
    redis_client.delete(keys.CHAT_QUEUE)
    assert mailbox.finish(taken, reply("ok"), takes_next=False).next is None
    [task] = redis_client.lrange(keys.CHAT_QUEUE, 0, -1)
    conversation, fence = arguments(task)
    assert conversation == str(ROOM)
    assert fence > taken.fence
    assert texts(mailbox.take(ROOM, fence)) == ["one", "ok", "two"]


def test_stale_finish_changes_nothing(dying: Mailbox, store: ConversationStore, redis_client: redis.Redis) -> None:
    slow = take_all(dying, say("hi"))
    [(_, fence)] = dying.sweep()
    assert not dying.finish(slow, reply("too late")).is_accepted
    assert [turn.text for turn in store.history(ROOM)] == ["hi"]
    assert redis_client.xlen(keys.outbox_key("telegram")) == 0
    assert texts(dying.take(ROOM, fence)) == ["hi"]


def test_dead_workers_successor_finds_what_was_being_answered(dying: Mailbox) -> None:
    take_all(dying, say("one"), say("two"))
    dying.submit(say("three"))
    [(_, fence)] = dying.sweep()
    taken = dying.take(ROOM, fence)
    assert taken is not None
    assert texts(taken) == [message.turn.text for message in taken.messages] == ["one", "two"]
    assert taken.num_deaths == 1


def test_lost_task_is_sent_again_with_the_same_fence(dying: Mailbox, redis_client: redis.Redis) -> None:
    fence = dying.submit(say("hi")).fence
    for _ in range(2):
        redis_client.delete(keys.CHAT_QUEUE)
        assert dying.sweep() == [(ROOM, fence)]
        assert redis_client.llen(keys.CHAT_QUEUE) == 1


def test_task_that_waits_its_turn_is_not_sent_again_unless_a_later_one_was_taken(
    dying: Mailbox, redis_client: redis.Redis
) -> None:
    later = Conversation("discord", "later")
    first, second = dying.submit(say("hi")).fence, dying.submit(Message(later, Turn(Role.USER, "hi"))).fence
    assert dying.sweep() == []
    dying.take(later, second or 0)
    assert (ROOM, first) in dying.sweep()


def test_message_that_killed_its_worker_twice_is_buried_and_leaves_the_history(
    dying: Mailbox, store: ConversationStore, redis_client: redis.Redis
) -> None:
    take_all(dying, say("boom"))
    dying.submit(say("and you?", author="bob"))
    taken = die_again(dying)
    assert taken.is_poisonous
    following = dying.finish(taken, reply("sorry", EntryKind.NOTICE), buries=True).next
    assert texts(following) == ["and you?"]
    assert following is not None
    assert following.num_deaths == 0
    assert redis_client.llen(keys.DEAD) == 1
    assert [turn.text for turn in store.history(ROOM)] == ["and you?"]


def test_death_of_a_suspect_that_waits_for_its_turn_is_not_counted(dying: Mailbox) -> None:
    take_all(dying, say("hi"))
    [(_, fence)] = dying.sweep()
    dying.take(ROOM, fence)  # a suspect now: only `begin` makes the next death count
    [(_, fence)] = dying.sweep()
    taken = dying.take(ROOM, fence)
    assert taken is not None
    assert taken.num_deaths == 1


def test_renewed_lease_is_not_swept(mailbox: Mailbox) -> None:
    taken = take_all(mailbox, say("hi"))
    assert mailbox.renew([(ROOM, taken.fence)]) == []
    assert mailbox.sweep() == []


def test_renewing_a_lost_claim_says_so(dying: Mailbox) -> None:
    taken = take_all(dying, say("hi"))
    dying.sweep()
    assert dying.renew([(ROOM, taken.fence)]) == [ROOM]


def test_regenerated_reply_takes_the_place_of_the_last_one(mailbox: Mailbox, store: ConversationStore) -> None:
    first = take_all(mailbox, say("hi"))
    mailbox.finish(first, reply("hello"))
    store.set_message_id(ROOM, str(first.fence), "m9")
    taken = take_all(mailbox, say("", message_id="2", kind=Kind.REGENERATE))
    assert texts(taken) == ["hi"]
    assert taken.replaced is not None
    assert taken.replaced.message_id == "m9"
    mailbox.finish(taken, reply("good day", EntryKind.REGENERATED))
    assert [turn.text for turn in store.history(ROOM)] == ["hi", "good day"]


def test_regenerating_that_fails_leaves_the_old_reply(mailbox: Mailbox, store: ConversationStore) -> None:
    mailbox.finish(take_all(mailbox, say("hi")), reply("hello"))
    taken = take_all(mailbox, say("", kind=Kind.REGENERATE))
    mailbox.finish(taken, reply("sorry", EntryKind.NOTICE))
    assert [turn.text for turn in store.history(ROOM)] == ["hi", "hello"]


def test_regenerate_is_never_joined_with_what_is_said_around_it(mailbox: Mailbox) -> None:
    taken = take_all(mailbox, say("one"), say("", kind=Kind.REGENERATE), say("two"))
    second = mailbox.finish(taken, reply("ok")).next
    assert second is not None
    assert (taken.kind, second.kind) == (Kind.SAY, Kind.REGENERATE)
    assert texts(mailbox.finish(second, reply("yes", EntryKind.REGENERATED)).next) == ["one", "yes", "two"]


def test_a_turn_that_cannot_be_read_is_left_out_of_what_a_worker_takes(
    mailbox: Mailbox, store: ConversationStore, redis_client: redis.Redis
) -> None:
    redis_client.rpush(history_key(ROOM), '{"role": "user", "text": "my secret')
    with capture_logs() as logged:
        first = take_all(mailbox, say("one"), say("two", author="bob"))
        second = mailbox.finish(first, reply("ok")).next
    assert (texts(first), texts(second)) == (["one"], ["one", "ok", "two"])
    assert [(entry["log_level"], entry["conversation"]) for entry in logged] == [("warning", str(ROOM))] * 2
    assert "secret" not in repr(logged)
    assert second is not None
    mailbox.finish(second, reply("fine"))
    assert [turn.text for turn in store.history(ROOM)] == ["one", "ok", "two", "fine"]


def test_a_reply_that_cannot_be_read_is_not_taken_for_the_one_to_replace(
    mailbox: Mailbox, redis_client: redis.Redis
) -> None:
    mailbox.finish(take_all(mailbox, say("hi")), reply("hello"))
    redis_client.lset(history_key(ROOM), -1, "{")
    taken = take_all(mailbox, say("", kind=Kind.REGENERATE))
    assert (texts(taken), taken.replaced) == (["hi"], None)


def test_reset_drops_the_reply_under_way_and_what_waits(mailbox: Mailbox, store: ConversationStore) -> None:
    taken = take_all(mailbox, say("one"), say("two", author="bob"))
    store.reset(ROOM)
    outcome = mailbox.finish(taken, reply("late"))
    assert (outcome.is_accepted, outcome.next) == (False, None)
    assert store.history(ROOM) == []
    assert texts(take_all(mailbox, say("three"))) == ["three"]


def test_new_persona_answers_what_the_old_one_was_about_to(mailbox: Mailbox, store: ConversationStore) -> None:
    taken = take_all(mailbox, say("one"), say("two", author="bob"))
    store.set_persona(ROOM, "Bess", Turn(Role.BOT, "hello, Bess here", name="Bess"))
    outcome = mailbox.finish(taken, reply("from the old one"))
    assert not outcome.is_accepted
    assert texts(outcome.next) == ["hello, Bess here", "one"]


def test_dead_workers_successor_respects_a_reset(dying: Mailbox, store: ConversationStore) -> None:
    take_all(dying, say("one"))
    store.reset(ROOM)
    [(_, fence)] = dying.sweep()
    assert dying.take(ROOM, fence) is None
    assert dying.sweep() == []


def test_position_counts_the_conversations_no_worker_has_taken_yet(mailbox: Mailbox) -> None:
    others = [Conversation("discord", str(number)) for number in range(3)]
    positions = [mailbox.submit(Message(other, Turn(Role.USER, "hi"))).position for other in others]
    assert positions == [0, 1, 2]


def test_workers_are_counted_while_they_show_signs_of_life(mailbox: Mailbox) -> None:
    assert mailbox.submit(say("hi")).num_workers == 0
    mailbox.sweep()
    assert mailbox.num_workers() == mailbox.submit(say("hi")).num_workers == 1
    mailbox.leave()
    assert mailbox.num_workers() == 0


def test_history_is_cut_in_chunks_and_keeps_what_is_being_answered(mailbox: Mailbox, store: ConversationStore) -> None:
    for number in range(MAX_TURNS):
        store.append(ROOM, Turn(Role.USER, str(number)))
    taken = take_all(mailbox, say("now"))
    assert len(taken.turns) == TURNS_AFTER_CUT
    assert taken.turns[-1].text == "now"


@pytest.mark.parametrize(
    "text", ["\ud83d half a surrogate", "🦉\x00\n\"quoted\" \\ 'x'", 'the "message_id": "reply:1"']
)
def test_any_text_arrives_as_it_was_or_with_question_marks(mailbox: Mailbox, text: str) -> None:
    taken = take_all(mailbox, say(text))
    assert texts(taken) == [text.encode("utf-8", "replace").decode()]


@pytest.fixture
def dying(redis_client: redis.Redis) -> Mailbox:
    """A mailbox whose leases end at once: every worker that does not finish counts as dead at the next sweep."""
    return Mailbox(redis_client, worker="w2", lease_s=0)


def die_again(mailbox: Mailbox) -> Taken:
    """Let a successor begin and die as well, and return what the next one takes."""
    [(_, fence)] = mailbox.sweep()
    second = mailbox.take(ROOM, fence)
    assert second is not None
    assert mailbox.begin(second)
    [(_, fence)] = mailbox.sweep()
    third = mailbox.take(ROOM, fence)
    assert third is not None
    return third
