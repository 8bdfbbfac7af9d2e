"""kill -9 of an adapter during a retraining: the next one edits the same message on, up to the result."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.adapter_process import adapter_process, kill, start_adapter
from tests.helpers.discord_server import TOKEN as DISCORD_TOKEN
from tests.helpers.discord_server import DiscordServer
from tests.helpers.retraining import REPORT, RESULT
from tests.helpers.telegram_files import PNG, TelegramFileServer
from tests.helpers.telegram_server import TOKEN as TELEGRAM_TOKEN
from worker.queue.connection import connect
from worker.queue.job import Job, Progress, State
from worker.queue.jobs import Jobs

PATIENCE_S = 120.0  # an adapter's start, on a busy machine
END = f"Promoted: {RESULT['version']} serves the next message."
Shown = Callable[[str], Awaitable[str]]
Process = subprocess.Popen[bytes]


@pytest.fixture
def started() -> Iterator[Callable[..., Process]]:
    """Start adapters; what a failing test leaves of them is killed."""
    processes: list[Process] = []

    def start(platform: str, home: Path, **settings: str) -> Process:
        processes.append(start_adapter(platform, home, **settings))
        return processes[-1]

    yield start
    for process in processes:
        kill(process)


async def through_two_deaths(jobs: Jobs, start: Callable[[], Process], process: Process, shown: Shown) -> None:
    """Train a queued job, as a training worker would, while adapters die; `shown` gives the id of the one card."""
    running = claimed(jobs.claim("train"))
    jobs.beat(running, Progress(10, 5000, 10000, 2.5, 100.0, 50.0))
    card = await shown("50%")
    kill(process)
    jobs.beat(running, Progress(15, 7500, 10000, 2.25, 100.0, 25.0))
    process = start()
    assert await shown("75%") == card
    kill(process)
    jobs.move(running, State.PROMOTED, result=RESULT)


def claimed(job: Job | None) -> Job:
    assert job is not None
    return job


async def test_the_message_of_a_job_on_telegram_survives_adapters_that_are_killed(
    redis_server: str, home: Path, started: Callable[..., Process]
) -> None:
    jobs = Jobs(connect(redis_server), worker="the training worker", device="here")
    async with TelegramFileServer() as server:
        ann = server.user("Ann")
        chat = server.private_chat(ann)
        settings = {"REDIS_URL": redis_server, "TELEGRAM_TOKEN": TELEGRAM_TOKEN, "PERSONABOT_TELEGRAM_API": server.url}
        start = partial(started, "telegram", home, PERSONABOT_ADMINS=f"telegram:{ann['id']}", **settings)

        async def shown(text: str) -> str:
            """Wait until the job's message says that; there is one such message."""
            title = "Retraining “tiny”"
            await server.until(lambda: any(title in told and text in told for told in server.texts(chat)), PATIENCE_S)
            [card] = [message for message in server.sent(chat) if title in message.get("text", "")]
            return str(card["message_id"])

        process = start()
        await server.send_file(chat, ann, "mine.jsonl", b"{}", "/retrain start name=tiny")
        card = await shown("Reading the data")
        jobs.move(claimed(jobs.claim("check")), State.PROPOSED, report=REPORT)
        await shown("Start it?")
        await server.press(chat, ann, chat.messages[int(card)], "Start")
        await shown("Queued")
        [job] = jobs.newest()
        jobs.put_curve(job, PNG)
        await through_two_deaths(jobs, start, process, shown)
        with adapter_process("telegram", home, **settings):
            assert await shown(END) == card
            await server.until(lambda: not jobs.shown("telegram"), PATIENCE_S)
        assert len(server.pictures(chat)) == 1
        assert sum("after: Hello!" in text for text in server.texts(chat)) == 1
        assert server.violations == []


async def test_the_message_of_a_job_on_discord_survives_adapters_that_are_killed(
    redis_server: str, home: Path, started: Callable[..., Process]
) -> None:
    jobs = Jobs(connect(redis_server), worker="the training worker", device="here")
    (home / "datasets").mkdir()
    (home / "datasets" / "mine.jsonl").write_text("{}")
    async with DiscordServer() as server:
        ann, channel = server.user("Ann"), server.channel("workshop")
        settings = {"REDIS_URL": redis_server, "DISCORD_TOKEN": DISCORD_TOKEN, "PERSONABOT_DISCORD_API": server.url}
        start = partial(started, "discord", home, PERSONABOT_ADMINS=f"discord:{ann['id']}", **settings)

        async def shown(text: str) -> str:
            """Wait until the job's message says that; there is one such message."""
            title = "Retraining “tiny”"
            await server.until(lambda: any(title in told and text in told for told in server.sent(channel)), PATIENCE_S)
            [card] = [message for message in server.messages[channel] if title in message["content"]]
            return str(card["id"])

        process = start()
        await server.until(lambda: server.commands and server.identified, PATIENCE_S)
        await server.slash(channel, ann, "retrain start", name="tiny", data="mine.jsonl")
        card = await shown("Reading the data")
        checked = claimed(jobs.claim("check"))
        jobs.move(checked, State.PROPOSED, report=REPORT)
        await shown("Start it?")
        assert jobs.confirm(checked.id, f"discord:{ann['id']}")
        await through_two_deaths(jobs, start, process, shown)
        with adapter_process("discord", home, **settings):
            assert await shown(END) == card
            await server.until(lambda: not jobs.shown("discord"), PATIENCE_S)
        assert sum("after: Hello!" in text for text in server.sent(channel)) == 1
        assert server.violations == []
