"""A real worker process with Celery, an engine and a server: what it answers, and what survives its death."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from personas.persona import GenerationSettings
from personas.registry import Registry, Version
from personas.store import ChannelSettings, ConversationStore
from tests.helpers.tiny_model import tiny_checkpoint
from tests.helpers.worker_process import PATIENCE_S, wait_until, worker_process
from worker.queue import keys
from worker.queue.connection import connect
from worker.queue.loaded import load_errors, loaded_models
from worker.queue.mailbox import Mailbox
from worker.queue.message import EntryKind, Message, OutboxEntry
from worker.queue.publish import Publisher
from worker.queue.server import EmbeddedServer
from worker.queue.task import reply_task

ROOM = Conversation("discord", "42")
# About a second on this model: time enough to be killed in.
LONG = GenerationSettings(min_new_tokens=600, max_new_tokens=600)
AUTHORS = ["ann", "bob", "cem"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", max_tokens=1024)


@pytest.fixture
def publisher(redis_server: str) -> Iterator[Publisher]:
    with Publisher(redis_server) as publisher:
        yield publisher


def message(text: str, author: str = "ann", room: Conversation = ROOM) -> Message:
    return Message(room, Turn(Role.USER, text, name=author, author_id=author, message_id=text), reply_to=text)


def submit(publisher: Publisher, *messages: Message) -> None:
    for each in messages:
        publisher.submit_later(each).result(PATIENCE_S)


def outbox(client: redis.Redis) -> list[OutboxEntry]:
    return [
        OutboxEntry.from_json(entry_id, fields["entry"])
        for entry_id, fields in client.xrange(keys.outbox_key(ROOM.platform))
    ]


def has_replies(client: redis.Redis, number: int) -> None:
    wait_until(lambda: client.xlen(keys.outbox_key(ROOM.platform)) >= number, f"there are {number} replies")


def comes_to_rest(client: redis.Redis) -> None:
    wait_until(lambda: not client.exists(keys.CLAIMS, "chat"), "nothing is left to do")


def begin_long_reply(client: redis.Redis, publisher: Publisher) -> None:
    """Return when a worker is in the middle of a reply."""
    ConversationStore(client).set_settings(ROOM, ChannelSettings(persona="Rusty", generation=LONG))
    submit(publisher, message("one"))
    wait_until(lambda: client.hget(keys.claim_key(ROOM), "taken") == "1", "the message is being answered")
    assert outbox(client) == []


def test_worker_answers_everybody_in_order_with_the_channels_persona(
    redis_server: str, redis_client: redis.Redis, publisher: Publisher, model: Path
) -> None:
    store = ConversationStore(redis_client)
    store.set_persona(ROOM, "Rusty")
    other = Conversation("discord", "other")
    Mailbox(redis_client, lease_s=0).submit(message("and now?", room=other))
    redis_client.delete("chat")  # the task is lost: the sweep sends it again
    submit(publisher, *(message(f"{author} asks", author) for author in AUTHORS))
    with worker_process(redis_server, model):
        has_replies(redis_client, 4)
    assert {entry.kind for entry in outbox(redis_client)} == {EntryKind.REPLY}
    assert [entry.reply_to for entry in outbox(redis_client) if entry.conversation == other] == ["and now?"]
    entries = [entry for entry in outbox(redis_client) if entry.conversation == ROOM]
    assert [entry.reply_to for entry in entries] == ["ann asks", "bob asks", "cem asks"]
    assert [entry.persona for entry in entries] == ["Rusty"] * 3
    history = store.history(ROOM)
    assert [turn.role for turn in history] == [Role.USER, Role.BOT] * 3
    assert [turn.text for turn in history if turn.role == Role.BOT] == [entry.text for entry in entries]


def test_reply_of_a_worker_killed_in_the_middle_arrives_exactly_once(
    redis_server: str, redis_client: redis.Redis, publisher: Publisher, model: Path
) -> None:
    # A short lease: while the next worker starts it is over.
    with worker_process(redis_server, model, PERSONABOT_LEASE_S="3") as worker:
        begin_long_reply(redis_client, publisher)
        worker.send_signal(signal.SIGKILL)
        worker.wait(PATIENCE_S)
        submit(publisher, message("two", "bob"))
    assert outbox(redis_client) == []
    with worker_process(redis_server, model):
        has_replies(redis_client, 2)
        # Celery delivers a task at least once, and so perhaps again.
        before, after = reply_task(ROOM)
        redis_client.lpush("chat", *(f"{before}{fence}{after}" for fence in (1, 2)))
        comes_to_rest(redis_client)
    entries = outbox(redis_client)
    assert [(entry.reply_to, entry.kind) for entry in entries] == [("one", EntryKind.REPLY), ("two", EntryKind.REPLY)]
    history = ConversationStore(redis_client).history(ROOM)
    assert [turn.text for turn in history] == ["one", entries[0].text, "two", entries[1].text]


def test_worker_that_is_stopped_finishes_its_reply_and_leaves_the_rest_for_the_next(
    redis_server: str, redis_client: redis.Redis, publisher: Publisher, model: Path
) -> None:
    # More than a worker answers between the signal and its hearing of it.
    texts = ["one", *(f"message {number}" for number in range(7))]
    with worker_process(redis_server, model) as worker:
        begin_long_reply(redis_client, publisher)
        submit(publisher, *(message(text, author=text) for text in texts[1:]))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0
    answered = [entry.reply_to for entry in outbox(redis_client)]
    assert 0 < len(answered) < len(texts)
    assert answered == texts[: len(answered)]
    assert not redis_client.exists(keys.WORKERS)
    command = (sys.executable, "-m", "celery", "-A", "worker.queue.app", "worker", "-Q", "chat", "-P", "threads")
    with worker_process(redis_server, model, command=command):
        has_replies(redis_client, len(texts))
        comes_to_rest(redis_client)
    assert [entry.reply_to for entry in outbox(redis_client)] == texts


def test_server_killed_in_the_middle_of_a_reply_costs_nothing(tmp_path: Path, model: Path) -> None:
    server = EmbeddedServer(tmp_path / "redis")
    server.start()
    client = connect(server.url)
    with Publisher(server.url) as publisher, worker_process(server.url, model, PERSONABOT_LEASE_S="12"):
        begin_long_reply(client, publisher)
        assert not client.exists("unacked")  # the worker alone knows which task it was given
        server.kill()
        server.start()
        submit(publisher, message("two", "bob"))
        has_replies(client, 2)
        comes_to_rest(client)
        assert [entry.reply_to for entry in outbox(client)] == ["one", "two"]
    client.close()
    server.release()


def test_worker_without_a_model_says_so_and_ends(redis_server: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "at all"
    with worker_process(redis_server, missing) as worker:
        assert worker.wait(PATIENCE_S) not in (0, None)


def test_importing_the_process_and_its_tasks_loads_no_torch() -> None:
    code = "import sys, worker.process, worker.tasks; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_worker_follows_a_promotion_and_says_what_it_has_loaded(
    redis_server: str, redis_client: redis.Redis, publisher: Publisher, model: Path, home: Path
) -> None:
    registry = Registry(home / "checkpoints")
    one = registry.promote(registry.add(model, "ada").reference)
    two = registry.add(tiny_checkpoint(home / "two", seed=1, max_tokens=1024), "ada")

    def are_served(version: Version) -> bool:
        workers = loaded_models(redis_client).values()
        return [[each.digest for each in states if each.is_default] for states in workers] == [[version.digest]] * 2

    own = {"PERSONABOT_DATA_DIR": str(home), "PERSONABOT_MODEL": "ada"}
    with worker_process(redis_server, model, **own), worker_process(redis_server, model, **own):
        wait_until(lambda: are_served(one), "both workers serve the first version")
        for number, version in enumerate((two, one, two), 1):
            registry.promote(version.reference)
            wait_until(lambda version=version: are_served(version), "both workers serve what was promoted")
            submit(publisher, message(f"question {number}"))
            has_replies(redis_client, number)
    assert [entry.model for entry in outbox(redis_client)] == [f"ada@{each.digest}" for each in (two, one, two)]
    assert load_errors(redis_client) == []
