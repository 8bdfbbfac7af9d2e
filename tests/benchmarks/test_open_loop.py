"""The open loop: which rates are called sustained, against a scripted way that answers as fast as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest
import redis

from benchmarks.crowd import PLATFORM, Heard
from benchmarks.open_loop import LIMIT_S, AloneWay, OpenLoop, Window, queue_at_rest, summary, table
from personas.catalogue import load_catalogue
from tests.helpers.answering import scripted_worker
from worker.queue import keys
from worker.respond import Responder


class Counter:
    """Answers one after another, `rate` a second at the most."""

    def __init__(self, rate: float) -> None:
        self._pause_s = 1 / rate
        self._asked: asyncio.Queue[str] = asyncio.Queue()

    async def speak(self, room: str, text: str) -> None:
        self._asked.put_nowait(room)

    async def heard(self) -> AsyncIterator[Heard]:
        while True:
            room = await self._asked.get()
            await asyncio.sleep(self._pause_s)
            yield Heard(room)


async def test_rate_beyond_what_is_answered_is_not_kept_up_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.open_loop.LIMIT_S", 0.1)
    monkeypatch.setattr("benchmarks.open_loop.PATIENCE_S", 0.1)
    loop = OpenLoop(capacity=250, num_people=100, seconds=0.4, num_windows=2)
    slow, slower = await loop.sustained(lambda: contextlib.nullcontext(Counter(50)))
    assert (slow.rate, slow.is_kept_up_with) == (250, False)
    assert slower.rate == 125


async def test_what_is_kept_up_with_is_tried_at_a_higher_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.open_loop.MIN_ANSWERED", 0.5)  # of few messages, on a busy machine
    loop = OpenLoop(capacity=40, num_people=5, seconds=0.5, num_windows=2)
    tried = await loop.sustained(lambda: contextlib.nullcontext(Counter(10_000)))
    assert [(window.rate, window.is_kept_up_with) for window in tried] == [(40, True), (60, True)]
    assert summary(tried)["replies_per_s"] == 60


async def test_what_people_who_wait_have_not_said_yet_counts_as_not_answered() -> None:
    loop = OpenLoop(capacity=100, num_people=4, seconds=0.4, num_windows=1)
    window = await loop.watch(lambda: contextlib.nullcontext(Counter(50)), rate=100)
    assert (window.p95_s < LIMIT_S, window.num_dropped) == (True, 0), "nothing else is wrong"
    assert window.num_said < window.num_due == 40
    assert not window.is_kept_up_with


@pytest.mark.parametrize(
    ("changes", "is_kept_up_with"),
    [({}, True), ({"num_dropped": 1}, False), ({"p95_s": LIMIT_S + 0.1}, False), ({"num_answered": 90}, False)],
)
def test_dropped_message_slow_ones_and_a_growing_queue_spoil_a_rate(
    changes: dict[str, float], is_kept_up_with: bool
) -> None:
    window = Window(rate=10, num_due=100, num_said=100, num_answered=99, num_dropped=0, p50_s=0.1, p95_s=LIMIT_S - 0.1)
    assert replace(window, **changes).is_kept_up_with == is_kept_up_with


def test_nothing_kept_up_with_is_shown_as_nothing() -> None:
    nothing = summary([Window(10, 3, 3, 0, 3, math.inf, math.inf)])
    assert nothing["replies_per_s"] == 0.0
    assert nothing["windows"][0]["p95_s"] is None
    assert table({"alone": nothing, "one worker": nothing}, 200).row_count == 2


async def test_what_fails_in_an_answer_is_raised_in_the_end() -> None:
    class Broken:
        def respond(self, *_: object, **__: object) -> None:
            raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        async with AloneWay(cast("Responder", Broken()), load_catalogue(None).get("Rusty")) as way:
            await way.speak("a room", "hello")


async def test_queue_that_never_rests_is_not_waited_for_for_ever(
    redis_server: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.open_loop.REST_TIMEOUT_S", 0.1)
    redis_client.zadd(keys.CLAIMS, {"somebody": 1})
    with pytest.raises(TimeoutError):
        async with queue_at_rest(redis_server):
            pass


async def test_queue_is_left_as_if_nothing_had_been_said(redis_server: str, redis_client: redis.Redis) -> None:
    with scripted_worker(redis_server, load_catalogue(None)):
        window = await OpenLoop(20, 4, 0.3, 1).watch(lambda: queue_at_rest(redis_server), rate=20)
    assert window.num_said > 0
    assert window.num_dropped == 0
    left = list(redis_client.scan_iter(f"*{PLATFORM}*"))
    assert not [key for key in left if not key.startswith(("seen:", keys.parts_key(PLATFORM)))]
