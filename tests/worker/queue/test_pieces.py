"""Pieces of a reply: whose are shown where two workers tell them, and what a Redis in trouble does to them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import redis

from personas.conversation import Conversation, Role, Turn
from tests.helpers.worker_process import wait_until
from worker.queue import keys
from worker.queue.connection import connect_async
from worker.queue.mailbox import Mailbox
from worker.queue.message import Message, Taken
from worker.queue.pieces import Piece, Shown, teller, watched

ROOM = Conversation("terminal", "local")


def heard(url: str, client: redis.Redis, *told: tuple[Taken, str]) -> list[Piece]:
    """Return what somebody who listens hears of pieces that are told in this order."""

    def tell_all() -> None:
        wait_until(lambda: client.pubsub_numsub(keys.pieces_channel(ROOM))[0][1], "somebody listens")
        for taken, text in told:
            tell = teller(client, taken)
            assert tell is not None
            tell(text)

    async def listen() -> list[Piece]:
        listener = connect_async(url)
        telling = asyncio.create_task(asyncio.to_thread(tell_all))
        pieces: list[Piece] = []
        async with aclosing(watched(listener, ROOM)) as coming:
            async for piece in coming:
                pieces.append(piece)
                if len(pieces) == len(told):
                    break
        await telling
        await listener.aclose()
        return pieces

    return asyncio.run(listen())


def test_pieces_of_a_reply_that_two_workers_tell_are_told_apart(redis_server: str, redis_client: redis.Redis) -> None:
    slow = Mailbox(redis_client, worker="slow", lease_s=0)
    slow.submit(Message(ROOM, Turn(Role.USER, "hi"), reply_to="m", is_watched=True))
    first = slow.take(ROOM, 1)
    [(_, fence)] = slow.sweep()
    second = Mailbox(redis_client, worker="quick").take(ROOM, fence)
    assert first is not None
    assert second is not None
    pieces = heard(redis_server, redis_client, (first, "One "), (first, "two"), (second, "Three"), (first, " more"))
    shown = Shown("m")
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
