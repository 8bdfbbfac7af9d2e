"""From a claim to the outbox, with a speaker that says what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.store import ChannelSettings, ConversationStore, settings_key
from worker import tasks
from worker.engine.errors import DeadlinePassed, EngineStopped
from worker.queue import keys
from worker.queue.mailbox import Mailbox
from worker.queue.message import EntryKind, Kind, Message, OutboxEntry
from worker.queue.reply import Tell
from worker.tasks import Replies

ROOM = Conversation("discord", "42")


@dataclass(frozen=True)
class Said:
    text: str
    seed: int | None = 1
    model: str = "echo"


@dataclass
class Echo:
    """Says `persona: last turn`; runs `meanwhile` first, and remembers the settings it was given."""

    meanwhile: Callable[[], object] = lambda: None
    settings: list[GenerationSettings] = field(default_factory=list)
    groups: list[tuple[str, str]] = field(default_factory=list)

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings,
        *,
        deadline: float | None = None,
        group: tuple[str, str] = ("", ""),
        stream: Tell | None = None,
    ) -> Said:
        self.settings.append(settings)
        self.groups.append(group)
        self.meanwhile()
        return Said(f"{persona.name}: {turns[-1].text}")


@dataclass
class Bench:
    """A worker's parts around one speaker."""

    redis: redis.Redis
    mailbox: Mailbox
    store: ConversationStore
    echo: Echo
    replies: Replies

    def submit(self, text: str, kind: str = Kind.SAY, deadline: float = 0.0, server: str = "") -> int | None:
        turn = Turn(Role.USER, text, author_id=text, message_id="")
        message = Message(ROOM, turn, kind=kind, deadline=deadline, reply_to=f"to {text}", server=server)
        return self.mailbox.submit(message).fence

    def answer(self, *texts: str, kind: str = Kind.SAY, deadline: float = 0.0) -> list[OutboxEntry]:
        """Submit each text, let a task run, and return all there is in the outbox."""
        fences = [self.submit(text, kind, deadline) for text in texts]
        assert fences[0] is not None
        self.replies.answer(ROOM, fences[0])
        return self.outbox()

    def outbox(self) -> list[OutboxEntry]:
        lines = self.redis.xrange(keys.outbox_key("discord"))
        return [OutboxEntry.from_json(entry_id, fields["entry"]) for entry_id, fields in lines]


def raiser(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def bench(redis_client: redis.Redis) -> Bench:
    mailbox, store, echo = Mailbox(redis_client, worker="w"), ConversationStore(redis_client), Echo()
    replies = Replies(mailbox, echo, lambda name: Persona(name=name or "Ada"))
    return Bench(redis_client, mailbox, store, echo, replies)


def test_everybody_who_waits_is_answered_in_order(bench: Bench) -> None:
    entries = bench.answer("one", "two", "three")
    assert [entry.text for entry in entries] == ["Ada: one", "Ada: two", "Ada: three"]
    assert [entry.reply_to for entry in entries] == ["to one", "to two", "to three"]


def test_channels_persona_and_settings_reach_the_speaker(bench: Bench) -> None:
    bench.store.set_settings(ROOM, ChannelSettings(persona="Bess", generation=GenerationSettings(top_k=3)))
    [entry] = bench.answer("hi")
    assert (entry.text, entry.persona) == ("Bess: hi", "Bess")
    assert bench.echo.settings == [GenerationSettings(top_k=3)]


def test_repeated_task_does_nothing(bench: Bench) -> None:
    fence = bench.submit("hi")
    assert fence is not None
    for _ in range(3):
        bench.replies.answer(ROOM, fence)
    assert len(bench.outbox()) == 1


def test_passed_deadline_is_answered_with_a_notice(bench: Bench) -> None:
    [entry] = bench.answer("hi", deadline=time.time() - 1)
    assert (entry.kind, entry.text, entry.reply_to) == (EntryKind.NOTICE, tasks.TOO_LATE, "to hi")
    assert bench.echo.settings == []


def test_unexpected_error_becomes_a_notice_and_the_next_message_is_answered(bench: Bench) -> None:
    errors = iter([ZeroDivisionError("boom")])

    def fail_once() -> None:
        for error in errors:
            raise error

    bench.echo.meanwhile = fail_once
    entries = bench.answer("one", "two")
    assert [entry.text for entry in entries] == [tasks.FAILED, "Ada: two"]


def test_settings_that_cannot_be_read_are_answered_with_a_notice(bench: Bench) -> None:
    bench.redis.hset(settings_key(ROOM), "generation", "{bad")
    assert [entry.text for entry in bench.answer("one", "two")] == [tasks.FAILED, tasks.FAILED]
    assert bench.echo.settings == []


def test_deadline_that_passes_in_the_engine_is_answered_with_a_notice(bench: Bench) -> None:
    bench.echo.meanwhile = raiser(DeadlinePassed("too late"))
    assert [entry.text for entry in bench.answer("hi")] == [tasks.TOO_LATE]


def test_message_outlives_an_engine_that_is_gone(bench: Bench) -> None:
    bench.echo.meanwhile = raiser(EngineStopped("the engine died"))
    told: list[EngineStopped] = []
    tasks.install(bench.replies, told.append)
    bench.mailbox.lease_s = 0
    tasks.reply(str(ROOM), bench.submit("hi") or 0)
    tasks.install(None)
    assert len(told) == 1
    assert bench.outbox() == []
    bench.echo.meanwhile = lambda: None
    [(_, fence)] = bench.mailbox.sweep()
    bench.replies.answer(ROOM, fence)
    assert [entry.text for entry in bench.outbox()] == ["Ada: hi"]


def test_task_in_a_process_without_a_model_says_what_to_start() -> None:
    with pytest.raises(RuntimeError, match="personabot worker"):
        tasks.reply(str(ROOM), 1)


def test_regenerating_with_a_fixed_seed_takes_another_one(bench: Bench) -> None:
    bench.store.set_settings(ROOM, ChannelSettings(generation=GenerationSettings(seed=5)))
    bench.answer("hi")
    entries = bench.answer("", kind=Kind.REGENERATE)
    assert entries[-1].kind == EntryKind.REGENERATED
    assert [settings.seed == 5 for settings in bench.echo.settings] == [True, False]


def test_regenerating_a_persona_with_a_fixed_seed_takes_another_one(bench: Bench) -> None:
    persona = Persona(name="Ada", generation=GenerationSettings(seed=5))
    bench.replies._persona_named = lambda name: persona
    bench.answer("hi")
    bench.answer("", kind=Kind.REGENERATE)
    wanted = [settings.over(persona.generation).seed for settings in bench.echo.settings]
    assert [seed == 5 for seed in wanted] == [True, False]


def test_the_model_takes_turns_between_servers_and_their_conversations(bench: Bench) -> None:
    fence = bench.submit("hi", server="guild 7")
    assert fence is not None
    bench.replies.answer(ROOM, fence)
    bench.answer("hi again")
    assert bench.echo.groups == [("guild 7", "discord:42"), ("discord:42", "discord:42")]


def test_regenerating_before_anything_was_said_is_answered_with_a_notice(bench: Bench) -> None:
    bench.store.set_persona(ROOM, "Ada", Turn(Role.BOT, "hello"))
    [entry] = bench.answer("", kind=Kind.REGENERATE)
    assert (entry.kind, entry.text) == (EntryKind.NOTICE, tasks.NOTHING_TO_REPEAT)


def test_persona_that_takes_over_meanwhile_answers_instead(bench: Bench) -> None:
    changes = iter(["Bess"])

    def change_once() -> None:
        for name in changes:
            bench.store.set_persona(ROOM, name)

    bench.echo.meanwhile = change_once
    assert [entry.text for entry in bench.answer("hi")] == ["Bess: hi"]


def test_stopping_worker_finishes_its_reply_and_hands_over_the_rest(bench: Bench) -> None:
    def stop() -> None:
        bench.redis.delete("chat")
        bench.replies.stop()

    bench.echo.meanwhile = stop
    assert [entry.text for entry in bench.answer("one", "two")] == ["Ada: one"]
    assert bench.redis.llen("chat") == 1


def test_message_that_killed_its_worker_twice_is_set_aside_with_a_notice(bench: Bench) -> None:
    fence = bench.submit("boom")
    bench.mailbox.lease_s = 0
    for _ in range(2):
        taken = bench.mailbox.take(ROOM, fence or 0)
        assert taken is not None
        bench.mailbox.begin(taken)
        [(_, fence)] = bench.mailbox.sweep()
    bench.replies.answer(ROOM, fence)
    assert [entry.text for entry in bench.outbox()] == [tasks.BURIED]
    assert bench.redis.llen(keys.DEAD) == 1
    assert bench.store.history(ROOM) == []


def test_suspects_are_answered_few_at_a_time(bench: Bench) -> None:
    """The one message that kills must not take all others with it a second time."""
    bench.mailbox.lease_s = 0
    rooms = [Conversation("discord", str(number)) for number in range(3 * tasks.MAX_SUSPECTS)]
    for room in rooms:
        fence = bench.mailbox.submit(Message(room, Turn(Role.USER, "hi"))).fence
        bench.mailbox.take(room, fence or 0)
    revived = bench.mailbox.sweep()
    bench.mailbox.lease_s = 60
    lock, at_once, most = threading.Lock(), 0, 0

    def count() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1

    bench.echo.meanwhile = count
    threads = [threading.Thread(target=bench.replies.answer, args=claim) for claim in revived]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.outbox()) == len(rooms)
    assert most <= tasks.MAX_SUSPECTS


def test_claims_are_held_while_they_are_answered_and_no_longer(bench: Bench) -> None:
    seen: list[int] = []
    bench.echo.meanwhile = lambda: seen.extend(fence for _, fence in bench.replies.held())
    fence = bench.submit("hi")
    bench.replies.answer(ROOM, fence or 0)
    assert (seen, bench.replies.held()) == ([fence], [])
