"""Work in order within a conversation, side by side across conversations.

Owns the tasks it starts; knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Lanes:
    """One lane for every key; a lane exists only while something runs in it."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Task[object]] = {}
        self._all: set[asyncio.Task[object]] = set()

    def run(self, key: str, job: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Start `job` as soon as everything before it in the lane of `key` has ended, well or badly."""
        before = self._last.get(key)
        task = asyncio.get_running_loop().create_task(self._after(before, job))
        self._last[key] = task
        self._all.add(task)
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    async def close(self, *, grace_s: float = 0.0) -> None:
        """Let what runs go on for a while, then cancel what has not ended and wait for it."""
        if self._all and grace_s:
            await asyncio.wait(self._all, timeout=grace_s)
        await ended(self._all)

    def __len__(self) -> int:
        """Return how many jobs run or wait."""
        return len(self._all)

    @staticmethod
    async def _after(before: asyncio.Task[object] | None, job: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait({before})
        return await job()

    def _forget(self, key: str, task: asyncio.Task[T]) -> None:
        self._all.discard(task)
        if self._last.get(key) is task:
            del self._last[key]


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel the tasks and wait until they have ended, whatever they end with."""
    every = list(tasks)
    pending = {task for task in every if not task.done()}
    while pending:
        # More than once: a cancellation that meets a socket's timeout can get lost in it.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
    await asyncio.gather(*every, return_exceptions=True)
