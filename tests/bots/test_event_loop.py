"""A Redis that hangs holds up messages, never the event loop."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bots.intake import NOT_TAKEN, Heard, Intake
from bots.services import Services
from bots.typing import Typing
from personas.catalogue import Catalogue
from personas.conversation import Conversation
from personas.settings import Settings
from worker.queue.connection import connect
from worker.queue.server import EmbeddedServer

TICK_S = 0.01
# A blocked loop would stand still for the socket's timeout of 2 s, while a thread beside it ticks on, up to 200 times.
# Where the machine is busy, both stand still.
MAX_TICKS_BESIDE = 60
MAX_SILENCE_S = 30.0


class Clock:
    """Counts in a thread of its own: what may pass of time whatever the event loop does."""

    def __init__(self) -> None:
        self.num_ticks = 0
        self._stopped = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(TICK_S):
            self.num_ticks += 1


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        server = EmbeddedServer(Path(folder) / "redis")
        server.start()
        yield server
        server.release()


async def test_the_loop_runs_on_while_redis_hangs_and_the_person_is_told(
    own_server: EmbeddedServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    opened = Services.open(Settings(data_dir=tmp_path, redis_url=own_server.url), own_server.url)
    services = replace(opened, catalogue=catalogue)
    pid = int(connect(own_server.url).info("server")["process_id"])
    clock, ticks = Clock(), [0]

    async def tick() -> None:
        while True:
            await asyncio.sleep(TICK_S)
            ticks.append(clock.num_ticks)

    async def show(_conversation: Conversation) -> None:
        return

    ticking = asyncio.create_task(tick())
    typing = Typing(show, every_s=5)
    os.kill(pid, signal.SIGSTOP)
    try:
        with clock.running():
            heard = Heard(Conversation("paper", "1"), "hello", "7", "Ann", "m1", is_group=False)
            started = time.monotonic()
            assert await Intake(services, typing).accept(heard) == NOT_TAKEN
            assert time.monotonic() - started < MAX_SILENCE_S
    finally:
        os.kill(pid, signal.SIGCONT)
    ticking.cancel()
    assert not typing.is_on(Conversation("paper", "1"))
    assert max(after - before for before, after in itertools.pairwise([*ticks, clock.num_ticks])) < MAX_TICKS_BESIDE
    await services.close()
