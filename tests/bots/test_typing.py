"""The typing notice."""

from __future__ import annotations

import asyncio

from bots.typing import Typing
from personas.conversation import Conversation

HERE = Conversation("paper", "1")


async def test_it_is_shown_again_and_again_until_it_is_stopped() -> None:
    shown: list[Conversation] = []
    twice = asyncio.Event()

    async def show(conversation: Conversation) -> None:
        shown.append(conversation)
        if len(shown) == 2:
            twice.set()
        raise ConnectionError("a courtesy may fail")

    typing = Typing(show, every_s=0.01)
    typing.start(HERE)
    async with asyncio.timeout(60):
        await twice.wait()
    typing.stop(HERE)
    assert not typing.is_on(HERE)
    await typing.close()


async def test_it_lapses_and_says_so() -> None:
    lapsed: asyncio.Queue[Conversation] = asyncio.Queue()

    async def show(_conversation: Conversation) -> None:
        return

    typing = Typing(show, every_s=0.01, longest_s=0.02)
    typing.on_lapse = lapsed.put
    typing.start(HERE)
    async with asyncio.timeout(60):
        assert await lapsed.get() == HERE
    assert not typing.is_on(HERE)
