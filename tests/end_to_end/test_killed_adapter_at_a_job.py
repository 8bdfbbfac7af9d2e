"""kill -9 of the Telegram adapter during a retraining: the next one edits the same message on, up to the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.adapter_process import adapter_process, kill, start_adapter
from tests.helpers.retraining import REPORT, RESULT
from tests.helpers.telegram_files import PNG, TelegramFileServer
from tests.helpers.telegram_server import TOKEN
from worker.queue.connection import connect
from worker.queue.job import Job, Progress, State
from worker.queue.jobs import Jobs

PATIENCE_S = 120.0  # an adapter's start, on a busy machine


async def test_the_message_of_a_job_survives_adapters_killed_while_it_trains_and_when_it_ends(
    redis_server: str, home: Path
) -> None:
    jobs = Jobs(connect(redis_server), worker="the training worker", device="here")
    async with TelegramFileServer() as server:
        ann = server.user("Ann")
        chat = server.private_chat(ann)
        settings = {"REDIS_URL": redis_server, "TELEGRAM_TOKEN": TOKEN, "PERSONABOT_TELEGRAM_API": server.url}
        settings["PERSONABOT_ADMINS"] = f"telegram:{ann['id']}"

        def cards() -> list[dict[str, Any]]:
            return [message for message in server.sent(chat) if "Retraining “tiny”" in message.get("text", "")]

        async def shown(text: str) -> dict[str, Any]:
            await server.until(lambda: any(text in card["text"] for card in cards()), PATIENCE_S)
            [card] = cards()
            return card

        process = start_adapter("telegram", home, **settings)
        await server.send_file(chat, ann, "mine.jsonl", b"{}", "/retrain start name=tiny")
        card = await shown("Reading the data")
        jobs.move(claimed(jobs.claim("check")), State.PROPOSED, report=REPORT)
        await shown("Start it?")
        await server.press(chat, ann, card, "Start")
        await shown("Queued")
        running = claimed(jobs.claim("train"))
        jobs.beat(running, Progress(10, 5000, 10000, 2.5, 100.0, 50.0))
        await shown("50%")
        kill(process)

        jobs.beat(running, Progress(15, 7500, 10000, 2.25, 100.0, 25.0))
        process = start_adapter("telegram", home, **settings)
        assert (await shown("75%"))["message_id"] == card["message_id"]
        kill(process)

        jobs.put_curve(running, PNG)
        jobs.move(running, State.PROMOTED, result=RESULT)
        with adapter_process("telegram", home, **settings):
            ended = await shown(f"Promoted: {RESULT['version']} serves the next message.")
            await server.until(lambda: "after: Hello!" in server.texts(chat)[-1], PATIENCE_S)
            await server.until(lambda: not jobs.shown("telegram"), PATIENCE_S)
        assert ended["message_id"] == card["message_id"]
        assert len(server.pictures(chat)) == 1
        assert sum("after: Hello!" in text for text in server.texts(chat)) == 1
        assert server.violations == []


def claimed(job: Job | None) -> Job:
    assert job is not None
    return job
