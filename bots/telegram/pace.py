"""How fast Telegram may be written to: a budget for each chat and one for all, on a clock that tests can turn.

Telegram publishes no exact figures; about one message a second in a private chat, 20 a minute in a group and 30 a
second overall are safe, and notices such as typing count. When it says "retry after", that is obeyed to the second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_IDLE_BUDGETS: Final = 4096


@dataclass(slots=True)
class Budget:
    """A token bucket: `burst` at once, then `per_s` a second; nothing before `closed_until`."""

    burst: float
    per_s: float
    left: float
    at: float
    closed_until: float = 0.0

    def wait_s(self, now: float, num_left_over: float = 0.0) -> float:
        """Return how long until one may be taken with `num_left_over` remaining."""
        self.left = min(self.burst, self.left + max(now - self.at, 0.0) * self.per_s)
        self.at = now
        missing = 1.0 + num_left_over - self.left
        return max(missing / self.per_s if missing > 1e-9 else 0.0, self.closed_until - now, 0.0)


class Pace:
    """The budgets of one bot."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._overall = Budget(25.0, 25.0, 25.0, clock())
        self._chats: dict[int, Budget] = {}

    async def take(self, chat_id: int) -> None:
        """Wait until a message may be sent to the chat."""
        while wait_s := self._wait_s(chat_id):  # noqa: ASYNC110  # time fills a budget, no event does
            await asyncio.sleep(wait_s)
        self._spend(chat_id)

    def try_take(self, chat_id: int) -> bool:
        """Take for something that may as well be left out, if that leaves enough for two messages."""
        if self._wait_s(chat_id, num_left_over=2.0):
            return False
        self._spend(chat_id)
        return True

    def close_for(self, chat_id: int, seconds: float) -> None:
        """Send nothing to the chat for a while."""
        self._budget(chat_id).closed_until = self._clock() + seconds

    def _wait_s(self, chat_id: int, num_left_over: float = 0.0) -> float:
        now = self._clock()
        return max(self._budget(chat_id).wait_s(now, num_left_over), self._overall.wait_s(now))

    def _spend(self, chat_id: int) -> None:
        self._budget(chat_id).left -= 1.0
        self._overall.left -= 1.0

    def _budget(self, chat_id: int) -> Budget:
        budget = self._chats.get(chat_id)
        if budget is None:
            self._drop_idle()
            # Groups have negative ids: 5 at once and 15 a minute more make 20 in the first minute.
            burst, per_s = (5.0, 0.25) if chat_id < 0 else (3.0, 1.0)
            budget = self._chats[chat_id] = Budget(burst, per_s, burst, self._clock())
        return budget

    def _drop_idle(self) -> None:
        if len(self._chats) < MAX_IDLE_BUDGETS:
            return
        now = self._clock()
        is_full = {chat: b.wait_s(now, b.burst - 1.0) == 0.0 for chat, b in self._chats.items()}
        self._chats = {chat: budget for chat, budget in self._chats.items() if not is_full[chat]}
