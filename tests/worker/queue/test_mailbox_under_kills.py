"""Whatever is killed between any two steps: every accepted message is answered exactly once, in order.

Hypothesis drives adapters and workers against a real server. A kill is a step that never comes: what the process held
in memory is dropped. Leases end at once, so that every sweep may take a conversation from a worker that still lives.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personas.conversation import Conversation, Role, Turn
from personas.store import ConversationStore
from tests.helpers.answering import arguments
from worker.queue import keys
from worker.queue.mailbox import Mailbox, Outcome
from worker.queue.message import EntryKind, Message, OutboxEntry, Taken

ROOMS = [Conversation("discord", "1"), Conversation("discord", "2", "9")]
AUTHORS = ["ann", "bob"]


@dataclass
class Expected:
    """What one conversation was given, and which of it a reset may have made superfluous."""

    accepted: list[str] = field(default_factory=list)
    droppable: set[str] = field(default_factory=set)


class World:
    """Adapters submit, Celery delivers in any order and more than once, workers answer or die."""

    def __init__(self, client: redis.Redis) -> None:
        self.redis = client
        self.redis.flushall()
        self.mailbox = Mailbox(client, worker="w", lease_s=0)
        self.store = ConversationStore(client)
        self.expected = {room: Expected() for room in ROOMS}
        self.tasks: list[tuple[Conversation, int]] = []
        self.workers: list[Taken] = []
        self.num_messages = 0

    def submit(self, chance: random.Random) -> None:
        """A platform may deliver the same message twice, and a task may be lost."""
        room, author = chance.choice(ROOMS), chance.choice(AUTHORS)
        self.num_messages += 1
        name = str(self.num_messages)
        message = Message(room, Turn(Role.USER, name, author_id=author, message_id=name), reply_to=name)
        self.mailbox.submit(message)
        if chance.random() < 0.2:
            assert self.mailbox.submit(message).is_duplicate
        self.expected[room].accepted.append(name)
        self._receive(chance)

    def deliver(self, chance: random.Random) -> None:
        """Celery gives a task to a worker, perhaps more than once; the worker may die after its first step."""
        if not self.tasks:
            return
        task = chance.choice(self.tasks)
        if chance.random() < 0.8:
            self.tasks.remove(task)
        taken = self.mailbox.take(*task)
        if taken is not None and chance.random() < 0.9:
            self.workers.append(taken)
            if taken.num_deaths:
                self.mailbox.begin(taken)

    def finish(self, chance: random.Random) -> None:
        """A worker, perhaps one that was thought dead, delivers; it may die before it goes on."""
        if not self.workers:
            return
        taken = self.workers.pop(chance.randrange(len(self.workers)))
        outcome = self._finish(taken, takes_next=chance.random() < 0.7)
        self._receive(chance)
        if outcome.next is not None and chance.random() < 0.9:
            self.workers.append(outcome.next)

    def kill(self, chance: random.Random) -> None:
        """A worker dies in the middle of a reply."""
        if self.workers:
            self.workers.pop(chance.randrange(len(self.workers)))

    def sweep(self, chance: random.Random) -> None:
        """Take every conversation from whoever holds it."""
        self.mailbox.sweep()
        self._receive(chance)

    def begin_anew(self, chance: random.Random) -> None:
        """A person resets the conversation, or chooses another persona."""
        room = chance.choice(ROOMS)
        if chance.random() < 0.5:
            self.store.reset(room)
            self.expected[room].droppable.update(self.expected[room].accepted)
        else:
            self.store.set_persona(room, "Bess", Turn(Role.BOT, "", name="Bess"))

    def check_order(self) -> None:
        """Nothing was answered twice or out of order so far."""
        answered = self._answered()
        for room, expected in self.expected.items():
            order = [expected.accepted.index(name) for name in answered[room]]
            assert order == sorted(set(order))

    def check_all(self) -> None:
        """Let everything that is left come to rest; then nothing may be missing."""
        self._come_to_rest()
        self.check_order()
        answered = self._answered()
        for room, expected in self.expected.items():
            assert set(expected.accepted) - set(answered[room]) <= expected.droppable
            self._check_history(room)
        leftover = [
            key for key in self.redis.scan_iter() if key.startswith(("mailbox:", "claim", "pending:", "queued"))
        ]
        assert leftover == []

    def _come_to_rest(self) -> None:
        self.workers.clear()
        self.tasks.clear()
        for _ in range(100):
            self.redis.delete(keys.CHAT_QUEUE)
            revived = self.mailbox.sweep()
            if not revived:
                return
            for room, fence in revived:
                taken = self.mailbox.take(room, fence)
                while taken is not None:
                    taken = self._finish(taken, takes_next=True).next
        pytest.fail("the queue does not come to rest")

    def _finish(self, taken: Taken, *, takes_next: bool) -> Outcome:
        names = [message.turn.text for message in taken.messages]
        authors = {message.author for message in taken.messages}
        assert len(authors) == 1
        assert [turn.text for turn in taken.turns][-len(names) :] == names
        if taken.num_deaths and not taken.is_poisonous:
            self.mailbox.begin(taken)
        kind = EntryKind.NOTICE if taken.is_poisonous else EntryKind.REPLY
        entry = OutboxEntry(taken.conversation, kind, json.dumps(names))
        return self.mailbox.finish(taken, entry, takes_next=takes_next, buries=taken.is_poisonous)

    def _receive(self, chance: random.Random) -> None:
        """Celery takes what was sent; some of it gets lost in a worker that dies, some stays in its queue."""
        while self.redis.llen(keys.CHAT_QUEUE) and chance.random() < 0.9:
            conversation, fence = arguments(self.redis.rpop(keys.CHAT_QUEUE))
            if chance.random() < 0.8:
                self.tasks.append((Conversation.parse(conversation), fence))

    def _answered(self) -> dict[Conversation, list[str]]:
        answered: dict[Conversation, list[str]] = {room: [] for room in ROOMS}
        for entry_id, fields in self.redis.xrange(keys.outbox_key("discord")):
            entry = OutboxEntry.from_json(entry_id, fields["entry"])
            answered[entry.conversation] += json.loads(entry.text)
        return answered

    def _check_history(self, room: Conversation) -> None:
        """Each reply stands right behind the turns it answers."""
        said: list[str] = []
        for turn in self.store.history(room):
            if turn.role == Role.USER:
                said.append(turn.text)
            elif turn.text:
                assert said == json.loads(turn.text)
                said = []
        assert said == []


Step = Callable[[World, random.Random], None]
# How often each step comes relative to the others.
STEPS: dict[Step, int] = {
    World.submit: 4,
    World.deliver: 4,
    World.finish: 4,
    World.kill: 2,
    World.sweep: 2,
    World.begin_anew: 1,
}
WEIGHTED = [step for step, weight in STEPS.items() for _ in range(weight)]


@given(steps=st.lists(st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 999)), min_size=60, max_size=90))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_accepted_message_is_answered_exactly_once_and_in_order(
    redis_client: redis.Redis, steps: list[tuple[Step, int]]
) -> None:
    world = World(redis_client)
    for step, seed in steps:
        step(world, random.Random(seed))
        world.check_order()
    world.check_all()
