"""Lanes: order within a key, none across keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bots.lanes import Lanes


async def test_a_lane_keeps_order_and_another_does_not_wait() -> None:
    done: list[str] = []
    gate = asyncio.Event()

    def job(name: str, waits: bool = False) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            if waits:
                await gate.wait()
            done.append(name)

        return run

    lanes = Lanes()
    first, second = lanes.run("a", job("a1", waits=True)), lanes.run("a", job("a2"))
    await lanes.run("b", job("b1"))
    assert done == ["b1"]
    gate.set()
    await asyncio.gather(first, second)
    assert done == ["b1", "a1", "a2"]
    assert len(lanes) == 0


async def test_a_failing_job_does_not_stop_its_lane() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def succeed() -> str:
        return "yes"

    lanes = Lanes()
    failing, next_one = lanes.run("a", fail), lanes.run("a", succeed)
    assert await next_one == "yes"
    with pytest.raises(ValueError, match="no"):
        await failing


async def test_closing_cancels_what_runs_and_what_waits() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    lanes = Lanes()
    tasks = [lanes.run("a", never), lanes.run("a", never)]
    await lanes.close()
    assert all(task.cancelled() for task in tasks)
