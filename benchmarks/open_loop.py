"""How many replies a second somebody keeps up with: arrivals at a fixed rate, whether or not others wait.

A rate is kept up with when 95 of 100 messages are answered within `LIMIT_S` of when they were due, none is dropped, and
about as many are answered meanwhile as are due: else the seconds of a measurement would pass before all have to wait.
Who still waits says nothing, so what is due counts whether it was said or not. What is asked is a `Way`: the engine of
this process, or the workers behind the queue.

What is found is an upper bound. Arrivals are evenly spaced, and those of people who know nothing of each other (a
Poisson process) come in clusters that wait longer; each rate is tried in one window, so there is no spread; and the
ways are tried one after another, not in turns, so that a machine that is busier meanwhile makes one look worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Self

from rich.table import Table

from benchmarks.crowd import PLATFORM, Crowd, Heard, QueueWay, Way, through_queue
from personas.conversation import Role, Turn
from personas.persona import Persona
from personas.store import history_key
from worker.engine.errors import EngineError
from worker.queue import keys
from worker.queue.connection import connect
from worker.respond import Responder

LIMIT_S: Final = 2.0
PATIENCE_S: Final = 5 * LIMIT_S  # what is not answered by then is dropped
MIN_ANSWERED: Final = 0.95  # of what is due in a window
HIGHEST: Final = 2.0  # of what the engine answers where everybody waits for the reply
POLL_S: Final = 0.05
REST_TIMEOUT_S: Final = 300.0
MAX_TOGETHER: Final = 256  # as many as the engine lets wait


class AloneWay:
    """Straight to the engine of this process: what the pipeline's way is compared with."""

    def __init__(self, responder: Responder, persona: Persona) -> None:
        self._responder = responder
        self._persona = persona
        self._turns: defaultdict[str, list[Turn]] = defaultdict(list)
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._pool = ThreadPoolExecutor(MAX_TOGETHER)
        self._asked: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.gather(*self._asked)  # what failed but by the engine's refusal is raised here
        finally:
            self._pool.shutdown()

    async def speak(self, room: str, text: str) -> None:
        """See `Way`."""
        self._turns[room].append(Turn(Role.USER, text, name="Ann", author_id="ann"))
        self._asked.append(asyncio.create_task(self._answer(room)))

    async def heard(self) -> AsyncIterator[Heard]:
        """See `Way`."""
        while True:
            yield await self._heard.get()

    async def _answer(self, room: str) -> None:
        turns, loop = self._turns[room], asyncio.get_running_loop()
        try:
            ask = partial(self._responder.respond, self._persona, tuple(turns), deadline=time.time() + PATIENCE_S)
            reply = await loop.run_in_executor(self._pool, ask)
        except EngineError:
            self._heard.put_nowait(Heard(room, is_reply=False))
            return
        turns.append(Turn(Role.BOT, reply.text, name=self._persona.name))
        self._heard.put_nowait(Heard(room))


@contextlib.asynccontextmanager
async def queue_at_rest(url: str) -> AsyncIterator[QueueWay]:
    """Open the way through the queue; in the end wait until nobody is left to be answered, and forget what was said.

    Raises TimeoutError where somebody still is after `REST_TIMEOUT_S`.
    """
    async with through_queue(url, PATIENCE_S) as way:
        yield way
    with contextlib.closing(connect(url)) as client:
        async with asyncio.timeout(REST_TIMEOUT_S):
            while await asyncio.to_thread(client.zcard, keys.CLAIMS):  # noqa: ASYNC110  # Redis, not an event
                await asyncio.sleep(POLL_S)
        client.delete(keys.outbox_key(PLATFORM), *client.scan_iter(history_key(f"{PLATFORM}:*")))


Open = Callable[[], AbstractAsyncContextManager[Way]]


@dataclass(frozen=True)
class Window:
    """What became of the messages that were due within some seconds; the times are infinite where too few came.

    `num_due`: how many should have been said; those that were not are missing in `num_said`, and in the times.
    `num_answered`: how many replies came within these seconds, to whatever.
    """

    rate: float
    num_due: int
    num_said: int
    num_answered: int
    num_dropped: int
    p50_s: float
    p95_s: float

    @property
    def is_kept_up_with(self) -> bool:
        """Whether this rate may be called sustained."""
        is_in_time = self.p95_s < LIMIT_S and not self.num_dropped
        return is_in_time and self.num_answered >= MIN_ANSWERED * self.num_due


@dataclass(frozen=True)
class OpenLoop:
    """So many people, for so many seconds at each of so many rates.

    `capacity`: about how many replies a second there may be. All ways are tried at the same rates from there.
    """

    capacity: float
    num_people: int
    seconds: float
    num_windows: int

    async def sustained(self, open_way: Open) -> list[Window]:
        """Look for the highest rate that is kept up with, by halving; return what was tried, in order."""
        low, high, tried = 0.0, HIGHEST * self.capacity, []
        for _ in range(self.num_windows):
            window = await self.watch(open_way, (low + high) / 2)
            tried.append(window)
            low, high = (window.rate, high) if window.is_kept_up_with else (low, window.rate)
        return tried

    async def watch(self, open_way: Open, rate: float) -> Window:
        """Let people say `rate` things a second, after a fifth of the time that is not counted."""
        async with open_way() as way:
            crowd = Crowd(way, self.num_people, every_s=self.num_people / rate)
            began = time.monotonic() + self.seconds / 5
            crowd.arrive()
            await asyncio.sleep(began + self.seconds - time.monotonic())
            await crowd.leave(PATIENCE_S)
        counted = [said for said in crowd.said if began <= said.due < began + self.seconds]
        took = sorted(math.inf if said.took_s is None else said.took_s for said in counted)
        came = [said.due + said.took_s for said in crowd.said if said.took_s is not None]
        return Window(
            rate=rate,
            num_due=round(rate * self.seconds),
            num_said=len(took),
            num_answered=sum(began <= at < began + self.seconds for at in came),
            num_dropped=sum(map(math.isinf, took)),
            p50_s=statistics.median(took or [math.inf]),
            p95_s=took[int(len(took) * 0.95)] if took else math.inf,
        )


def summary(tried: list[Window]) -> dict[str, Any]:
    """Return the highest rate that was kept up with, 0 for none, and all that was tried."""
    kept = [window.rate for window in tried if window.is_kept_up_with]
    finite = [{name: value if math.isfinite(value) else None for name, value in asdict(each).items()} for each in tried]
    return {"replies_per_s": round(max(kept, default=0.0), 2), "windows": finite}


def table(ways: dict[str, dict[str, Any]], num_people: int) -> Table:
    """Return `summary` of each way as a table."""
    title = f"{num_people} conversations, open loop: most replies/s with 95 of 100 within {LIMIT_S:g} s"
    shown = Table(title=title)
    for name in ("way", "replies/s", "÷ alone", "p50 s there", "p95 s there"):
        shown.add_column(name, justify="left" if name == "way" else "right")
    alone = ways["alone"]["replies_per_s"]
    for way, found in ways.items():
        rate = found["replies_per_s"]
        there = [each for each in found["windows"] if rate and round(each["rate"], 2) == rate]
        times = [f"{each[name]:.2f}" for each in there for name in ("p50_s", "p95_s")] or ["–", "–"]
        shown.add_row(way, f"{rate:.1f}", f"{rate / alone:.2f}" if alone else "–", *times)
    return shown
