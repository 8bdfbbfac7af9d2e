"""Pieces of a reply: whose are shown where two workers tell them, and what a Redis in trouble does to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import pytest
import redis
from structlog.testing import capture_logs

from personas.conversation import Conversation, Role, Turn
from tests.helpers.worker_process import wait_until
from worker.queue import keys
from worker.queue import pieces as pieces_module
from worker.queue.connection import connect_async
from worker.queue.mailbox import Mailbox
from worker.queue.message import Message, Taken
from worker.queue.pieces import TELL_S, Piece, Shown, telling, watched

ROOM = Conversation("terminal", "local")


@pytest.fixture
def taken(redis_client: redis.Redis) -> Taken:
    mailbox = Mailbox(redis_client, worker="slow", lease_s=0)
    mailbox.submit(Message(ROOM, Turn(Role.USER, "hi"), reply_to="m", is_watched=True))
    taken = mailbox.take(ROOM, 1)
    assert taken is not None
    return taken


def heard(url: str, tell_all: Callable[[], None], number: int) -> list[Piece]:
    """Return the first pieces that somebody hears who listens while `tell_all` runs."""

    async def listen() -> list[Piece]:
        listener = connect_async(url)
        telling_all = asyncio.create_task(asyncio.to_thread(tell_all))
        pieces: list[Piece] = []
        async with aclosing(watched(listener, ROOM)) as coming:
            while len(pieces) < number:
                pieces.append(await anext(coming))
        await telling_all
        await listener.aclose()
        return pieces

    return asyncio.run(listen())


def wait_for_listener(client: redis.Redis) -> None:
    wait_until(lambda: client.pubsub_numsub(keys.pieces_channel(ROOM))[0][1], "somebody listens")


def tell_one(url: str, taken: Taken, text: str) -> None:
    with telling(url) as teller:
        tell = teller(taken)
        assert tell is not None
        tell(text)


def test_pieces_of_a_reply_that_two_workers_tell_are_told_apart(
    redis_server: str, redis_client: redis.Redis, taken: Taken
) -> None:
    [(_, fence)] = Mailbox(redis_client, worker="quick").sweep()
    second = Mailbox(redis_client, worker="quick").take(ROOM, fence)
    assert second is not None

    def tell_all() -> None:
        wait_for_listener(redis_client)
        for whose, text in [(taken, "One "), (taken, "two"), (second, "Three"), (taken, " more")]:
            tell_one(redis_server, whose, text)

    shown = Shown("m")
    pieces = heard(redis_server, tell_all, 4)
    assert [piece.text for piece in pieces if shown.goes_on_with(piece)] == ["One ", "two"]


@pytest.mark.parametrize(
    ("fences", "shown"),
    [
        ([1, 1, 1], [True, True, True]),
        ([2, 1, 2], [True, False, True]),  # the one that lost its claim goes on telling
        ([1, 2, 1], [True, False, False]),
        ([1, 2, 2], [True, False, False]),  # begun anew: what was shown is no part of it
    ],
)
def test_pieces_of_one_worker_alone_are_shown(fences: list[int], shown: list[bool]) -> None:
    pieces = Shown("m")
    assert [pieces.goes_on_with(Piece("m", "text", fence)) for fence in fences] == shown


def test_pieces_of_the_reply_to_another_message_are_not_shown() -> None:
    pieces = Shown("m")
    assert not pieces.goes_on_with(Piece("of before", "text", 7))
    assert pieces.goes_on_with(Piece("m", "text", 6))


def test_redis_that_hangs_does_not_hold_up_the_reply(
    redis_server: str, redis_client: redis.Redis, taken: Taken
) -> None:
    begun = time.monotonic()
    redis_client.client_pause(60_000, all=False)
    try:
        with telling(redis_server) as teller, capture_logs() as logs:
            tell = teller(taken)
            assert tell is not None
            for _ in range(20):
                tell("piece")
    finally:
        redis_client.client_unpause()
    assert [line["event"] for line in logs] == ["pieces not told any more"]
    assert time.monotonic() - begun < 10 * TELL_S  # once, and sooner than the mailbox's client


def test_listener_that_is_refused_says_so_once_and_hears_what_comes_later(
    redis_server: str, redis_client: redis.Redis, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "PAUSE_S", 0.01)
    redis_client.acl_log_reset()
    redis_client.execute_command("ACL", "SETUSER", "default", "resetchannels")

    def tell_all() -> None:
        try:
            wait_until(lambda: num_refused() >= 3, "it was refused")
        finally:
            redis_client.execute_command("ACL", "SETUSER", "default", "allchannels")
        wait_for_listener(redis_client)
        tell_one(redis_server, taken, "there")

    def num_refused() -> int:
        return sum(int(entry["count"]) for entry in redis_client.acl_log())

    with capture_logs() as logs:
        assert [piece.text for piece in heard(redis_server, tell_all, 1)] == ["there"]
    assert [line["event"] for line in logs] == ["pieces not heard for now"]


def test_what_is_no_piece_is_passed_over(redis_server: str, redis_client: redis.Redis, taken: Taken) -> None:
    def tell_all() -> None:
        wait_for_listener(redis_client)
        for line in ("{", "[]", '{"reply_to": "m", "text": "without a fence"}'):
            redis_client.publish(keys.pieces_channel(ROOM), line)
        tell_one(redis_server, taken, "there")

    assert [piece.text for piece in heard(redis_server, tell_all, 1)] == ["there"]
