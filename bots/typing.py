"""The typing notice, kept up from the moment a message is accepted until its reply is there.

Platforms let the notice lapse after seconds, so it is sent again and again; how it is sent is the adapter's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from bots.lanes import ended
from personas.conversation import Conversation

log = structlog.get_logger(__name__)


class Typing:
    """Which conversations are waiting for a reply, and the one task for each that keeps the notice up."""

    def __init__(
        self,
        send: Callable[[Conversation], Awaitable[None]],
        *,
        every_s: float,
        longest_s: float = 180.0,
    ) -> None:
        self.on_lapse: Callable[[Conversation], Awaitable[None]] | None = None
        self._send = send
        self._every_s = every_s
        self._longest_s = longest_s
        self._tasks: dict[Conversation, asyncio.Task[None]] = {}
        self._ends: dict[Conversation, float] = {}

    def start(self, conversation: Conversation) -> None:
        """Show the notice until `stop`; after `longest_s` without another message it lapses, and `on_lapse` is told."""
        self._ends[conversation] = time.monotonic() + self._longest_s
        if conversation not in self._tasks:
            self._tasks[conversation] = asyncio.get_running_loop().create_task(self._keep_up(conversation))

    def stop(self, conversation: Conversation) -> None:
        """Let the notice lapse; sending a message ends it on the platform's side at once."""
        self._ends.pop(conversation, None)
        task = self._tasks.pop(conversation, None)
        if task is not None:
            task.cancel()

    def is_on(self, conversation: Conversation) -> bool:
        """Say whether the notice is being kept up."""
        return conversation in self._tasks

    async def close(self) -> None:
        """Stop everything."""
        tasks = list(self._tasks.values())
        for conversation in list(self._tasks):
            self.stop(conversation)
        await ended(tasks)

    async def _keep_up(self, conversation: Conversation) -> None:
        while time.monotonic() < self._ends.get(conversation, 0.0):
            try:
                await self._send(conversation)
            except Exception as error:  # a courtesy: whatever happens to it must not stop the reply
                log.debug("typing_not_shown", conversation=str(conversation), error=type(error).__name__)
            await asyncio.sleep(self._every_s)
        self._tasks.pop(conversation, None)
        self._ends.pop(conversation, None)
        if self.on_lapse is not None:
            await self.on_lapse(conversation)
