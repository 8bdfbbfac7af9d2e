"""A platform without a server: what is sent is written down, and failures come when they are ordered."""

from __future__ import annotations

import asyncio

from bots.delivery import NoRoom, Rows, TryLater
from bots.speech import Speech, signed
from personas.conversation import Conversation

HERE, THERE = Conversation("paper", "1"), Conversation("paper", "2")


class Paper:
    """A platform that writes down what is sent; `failures` are raised first, HERE, in order."""

    max_length = 100

    def __init__(self) -> None:
        self.sent: list[tuple[Conversation, str]] = []
        self.edited: list[tuple[str, str]] = []
        self.deleted: list[str] = []
        self.failures: list[Exception] = []
        self.max_sent: int | None = None
        self.gate: asyncio.Event | None = None
        self.is_sending = False
        self.has_failed = False
        self.has_room = True

    def worded(self, conversation: Conversation, speech: Speech) -> str:
        return signed(speech, "Paper")

    async def send(
        self, conversation: Conversation, text: str, *, nonce: str = "", reply_to: str = "", buttons: Rows = ()
    ) -> str:
        self._fail(conversation)
        self.is_sending = True
        if self.gate is not None:
            await self.gate.wait()
        self.sent.append((conversation, text))
        return f"id{len(self.sent)}"

    async def edit(
        self, conversation: Conversation, message_id: str, text: str, *, buttons: Rows = (), is_progress: bool = False
    ) -> None:
        if is_progress and not self.has_room:
            raise NoRoom("replies first")
        self._fail(conversation)
        self.edited.append((message_id, text))

    async def send_picture(self, conversation: Conversation, png: bytes, caption: str, *, nonce: str = "") -> str:
        return await self.send(conversation, f"[{len(png)} bytes] {caption}")

    async def delete(self, conversation: Conversation, message_id: str) -> None:
        self.deleted.append(message_id)

    async def show_typing(self, conversation: Conversation) -> None:
        return

    def _fail(self, conversation: Conversation) -> None:
        if self.failures and conversation == HERE:
            raise self.failures.pop(0)
        if self.max_sent == len(self.sent):
            self.has_failed = True
            raise TryLater("the network is gone", 60)
