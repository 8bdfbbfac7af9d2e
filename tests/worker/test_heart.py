"""The heartbeat: a living worker keeps what it answers, however slowly; a dead one's conversations are found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from personas.catalogue import load_catalogue
from personas.conversation import Conversation, Role, Turn
from personas.settings import Settings
from tests.helpers.answering import Script
from tests.helpers.worker_process import wait_until
from worker import tasks
from worker.process import Casting, Heart, answering
from worker.queue import keys
from worker.queue.mailbox import Mailbox, Outcome
from worker.queue.message import Message

ROOM = Conversation("discord", "42")
LEASE_S = 3.0  # the machine may be busy: a worker that stands still for so long loses its claims


@pytest.fixture
def message() -> Message:
    return Message(ROOM, Turn(Role.USER, "hi", author_id="ann"))


def test_slow_reply_keeps_its_claim_beyond_the_lease(
    redis_server: str, redis_client: redis.Redis, message: Message
) -> None:
    script = Script()
    script.pause()
    settings = Settings(redis_url=redis_server, lease_s=LEASE_S)
    other = Mailbox(redis_client, worker="other", lease_s=LEASE_S)
    fence = other.submit(message).fence
    with answering(settings, redis_server, script) as replies:
        thread = threading.Thread(target=replies.answer, args=(ROOM, fence))
        thread.start()
        wait_until(replies.held, "the reply is under way")
        begun = redis_client.zscore(keys.CLAIMS, str(ROOM)) or 0
        wait_until(
            lambda: (redis_client.zscore(keys.CLAIMS, str(ROOM)) or 0) > begun + LEASE_S, "its first lease has ended"
        )
        assert other.sweep() == []
        script.resume()
        thread.join()
    assert redis_client.xlen(keys.outbox_key("discord")) == 1
    assert other.num_workers() == 1  # the one that left is not counted


def test_beat_sends_the_task_of_a_conversation_whose_worker_died(redis_client: redis.Redis, message: Message) -> None:
    dead = Mailbox(redis_client, worker="dead", lease_s=0)
    dead.take(ROOM, dead.submit(message).fence or 0)
    mailbox = Mailbox(redis_client, worker="living", lease_s=LEASE_S)
    casting = Casting(load_catalogue(None), "")
    redis_client.delete("chat")
    Heart(mailbox, tasks.Replies(mailbox, Script(), casting.named)).beat()
    assert redis_client.llen("chat") == 1
    assert mailbox.num_workers() == 1


class Late(Mailbox):
    """Renews leases after something else has happened."""

    def renew(self, held: Iterable[tuple[Conversation, int]]) -> list[Conversation]:
        claims = list(held)
        self.before_renewal()
        return super().renew(claims)

    before_renewal: Callable[[], object] = staticmethod(lambda: None)


class Delivered(Mailbox):
    """Pauses once when a reply is delivered, before the worker lets its claim go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_delivered, self.may_go_on = threading.Event(), threading.Event()

    def finish(self, *args: Any, **kwargs: Any) -> Outcome:
        outcome = super().finish(*args, **kwargs)
        self.is_delivered.set()
        self.may_go_on.wait(60)
        return outcome


def lost(beat: Callable[[], None]) -> int:
    """Return how many claims one beat reports as lost."""
    with capture_logs() as logs:
        beat()
    return len([line for line in logs if line["event"].startswith("claim lost")])


def test_a_claim_that_was_finished_meanwhile_is_not_reported_as_lost(
    redis_client: redis.Redis, message: Message
) -> None:
    script, mailbox = Script(), Late(redis_client, worker="living", lease_s=LEASE_S)
    script.pause()
    replies = tasks.Replies(mailbox, script, Casting(load_catalogue(None), "").named)
    thread = threading.Thread(target=replies.answer, args=(ROOM, mailbox.submit(message).fence), daemon=True)
    thread.start()
    wait_until(replies.held, "the reply is under way")

    def finish() -> None:
        script.resume()
        thread.join()

    mailbox.before_renewal = finish
    assert lost(Heart(mailbox, replies).beat) == 0


def test_a_claim_that_is_just_being_let_go_is_not_reported_as_lost(redis_client: redis.Redis, message: Message) -> None:
    mailbox = Delivered(redis_client, worker="living", lease_s=LEASE_S)
    replies = tasks.Replies(mailbox, Script(), Casting(load_catalogue(None), "").named)
    heart = Heart(mailbox, replies)
    thread = threading.Thread(target=replies.answer, args=(ROOM, mailbox.submit(message).fence), daemon=True)
    thread.start()
    assert mailbox.is_delivered.wait(60)
    assert replies.held()
    assert lost(heart.beat) == 0
    mailbox.may_go_on.set()
    thread.join()
    assert lost(heart.beat) == 0


def test_a_claim_that_was_taken_over_is_reported_from_the_second_beat_on(
    redis_client: redis.Redis, message: Message
) -> None:
    script, mailbox = Script(), Mailbox(redis_client, worker="slow", lease_s=0)
    script.pause()
    replies = tasks.Replies(mailbox, script, Casting(load_catalogue(None), "").named)
    heart = Heart(mailbox, replies)
    thread = threading.Thread(target=replies.answer, args=(ROOM, mailbox.submit(message).fence), daemon=True)
    thread.start()
    wait_until(replies.held, "the reply is under way")
    [(_, fence)] = Mailbox(redis_client, worker="quick").sweep()
    assert Mailbox(redis_client, worker="quick").take(ROOM, fence)
    assert [lost(heart.beat) for _ in range(3)] == [0, 1, 1]
    script.resume()
    thread.join()


def test_persona_that_left_the_catalogue_gives_way_to_the_default() -> None:
    casting = Casting(load_catalogue(None), "Rusty")
    assert casting.named("").name == casting.named("Nobody Knows").name == "Rusty"
