"""The one thread through which an asyncio adapter submits messages.

Redis is called synchronously there, one message after another, so that the event loop never waits for a socket.
(Measured: one thread is faster than eight.)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import uuid
from types import TracebackType
from typing import Final, Self

import redis
import structlog

from worker.queue.connection import connect
from worker.queue.errors import QueueUnavailable
from worker.queue.mailbox import LEASE_S, Mailbox
from worker.queue.message import Message, Submitted

log = structlog.get_logger(__name__)

NUM_ATTEMPTS: Final = 3
PAUSES_S: Final = (0.2, 0.8)  # between the attempts
ATTEMPT_S: Final = 2.0  # a Redis that hangs is given up, and the person told, after seconds


class Publisher:
    """Submits messages to the mailbox. `start()` and `close()`, or a context manager."""

    def __init__(self, url: str, *, lease_s: float = LEASE_S) -> None:
        self._mailbox = Mailbox(connect(url, timeout_s=ATTEMPT_S, num_retries=0), lease_s=lease_s)
        self._waiting: queue.SimpleQueue[tuple[Message, concurrent.futures.Future[Submitted]] | None] = (
            queue.SimpleQueue()
        )
        self._is_away = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Publish what waits, then stop the thread."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join()

    async def submit(self, message: Message) -> Submitted:
        """Accept a message; raise QueueUnavailable when Redis did not take it within seconds."""
        return await asyncio.wrap_future(self.submit_later(message))

    def submit_later(self, message: Message) -> concurrent.futures.Future[Submitted]:
        """Accept a message from a thread that is no event loop."""
        future: concurrent.futures.Future[Submitted] = concurrent.futures.Future()
        self._waiting.put((message, future))
        return future

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            message, future = item
            # A cancelled waiter is still to be answered: the platform will not send the message again.
            future.set_running_or_notify_cancel()
            try:
                submitted = self._submit(message)
            except Exception as error:
                log.warning("message not accepted", conversation=str(message.conversation), error=repr(error))
                _settle(future, error=error)
            else:
                _settle(future, submitted=submitted)

    def _submit(self, message: Message) -> Submitted:
        submission = uuid.uuid4().hex
        # While Redis is away, one attempt for each of the messages that wait in line behind this one.
        num_attempts = 1 if self._is_away else NUM_ATTEMPTS
        for attempt in range(num_attempts):
            try:
                submitted = self._mailbox.submit(message, submission)
                self._is_away = False
                return submitted
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if attempt == num_attempts - 1:
                    self._is_away = True
                    raise QueueUnavailable(f"Redis did not take the message: {error}") from error
                self._closing.wait(PAUSES_S[attempt])
        raise AssertionError("unreachable")


def _settle(
    future: concurrent.futures.Future[Submitted],
    *,
    submitted: Submitted | None = None,
    error: Exception | None = None,
) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    elif submitted is not None:
        future.set_result(submitted)
