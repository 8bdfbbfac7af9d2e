"""Telegram's pace on a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest
import telegram

from bots.delivery import NoRoom
from bots.telegram.pace import Pace
from bots.telegram.platform import TelegramPlatform
from personas.conversation import Conversation


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_typing_leaves_room_for_two_messages() -> None:
    pace = Pace(Clock())
    assert pace.try_take(1)
    assert not pace.try_take(1)


def test_a_group_gets_twenty_messages_in_its_first_minute() -> None:
    clock, num_taken = Clock(), 0
    pace = Pace(clock)
    for _ in range(600):
        clock.now += 0.1
        while not pace._wait_s(-7):
            pace._spend(-7)
            num_taken += 1
    assert num_taken in (19, 20)


def test_a_closed_chat_stays_closed_to_the_second_and_others_stay_open() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.close_for(1, 30.0)
    clock.now += 29.9
    assert not pace.try_take(1)
    assert pace.try_take(2)
    clock.now += 0.1
    assert pace.try_take(1)


async def test_a_message_waits_for_its_budget() -> None:
    pace = Pace()
    for _ in range(3):
        await pace.take(1)
    waiting = asyncio.create_task(pace.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    await waiting


async def test_progress_in_a_busy_group_leaves_the_room_to_replies_and_comes_when_there_is_some() -> None:
    clock = Clock()
    platform = TelegramPlatform(telegram.Bot("1:none"), pace := Pace(clock))
    for _ in range(3):
        await pace.take(-7)
    with pytest.raises(NoRoom):
        await platform.edit(Conversation("telegram", "-7"), "1", "10%", is_progress=True)
    assert not pace._wait_s(-7), "a reply goes out at once"
    clock.now += 4.0
    assert pace.try_take(-7)
