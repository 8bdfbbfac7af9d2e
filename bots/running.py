"""The life of an adapter process: Redis, connections, signals, a clean end.

Knows no platform: each brings a `serve` coroutine that runs until the stop event is set.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import structlog

from bots.lanes import ended
from bots.services import Services
from personas.settings import Settings
from worker.queue.server import running_server

log = structlog.get_logger(__name__)

Serve = Callable[[Services, asyncio.Event], Awaitable[None]]


def run_adapter(settings: Settings, serve: Serve) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted stays in Redis."""
    with running_server(settings) as url:
        asyncio.run(_main(settings, url, serve))


async def _main(settings: Settings, url: str, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    services = Services.open(settings, url)
    try:
        await serve(services, stop)
    finally:
        await services.close()


async def first_to_end(*jobs: Awaitable[object]) -> None:
    """Run the jobs until one of them ends, cancel the others, and raise what went wrong."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await ended(tasks)
