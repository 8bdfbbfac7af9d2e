"""What the queue costs: the same requests to an engine alone, and through Redis, Celery and the outbox.

    python -m benchmarks.pipeline                   # the shipped model, 1, 16 and 64 conversations, then an open loop
    python -m benchmarks.pipeline --model models/starter --seconds 0 --json        # without the open loop

First everybody waits for the reply; both engines are loaded at once and asked in turns (alone, queue, queue, alone …),
so that a busy machine slows both. Then people speak at fixed times (see `open_loop`), with one worker and with two.
Adapter, Redis and worker share the machine with the engine. The adapter submits, reads and acknowledges; what a
platform's delivery does besides is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.crowd import PLATFORM, TEXTS
from benchmarks.open_loop import AloneWay, OpenLoop, queue_at_rest, summary, table
from personas.catalogue import load_catalogue
from personas.conversation import Conversation, Role, Turn
from personas.logs import configure_logging
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
from personas.store import ChannelSettings, ConversationStore
from worker.queue.connection import connect, connect_async
from worker.queue.mailbox import Mailbox
from worker.queue.message import Message
from worker.queue.outbox import Outbox
from worker.queue.publish import Publisher
from worker.queue.server import running_server
from worker.respond import Responder, start_responder

START_TIMEOUT_S = 300.0
NUM_WINDOWS = 6  # rates of the open loop that are tried; the last two lie a 64th of the highest apart


@dataclass
class Measured:
    """Replies of one way of asking: how long each took, how long all together."""

    latencies_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    texts: list[str] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Count another round of the same."""
        self.latencies_s += other.latencies_s
        self.total_s += other.total_s
        self.texts += other.texts

    def summary(self) -> dict[str, float]:
        """Return replies per second and latencies in milliseconds."""
        ordered = sorted(self.latencies_s)
        return {
            "replies_per_s": round(len(ordered) / self.total_s, 3),
            "p50_ms": round(statistics.median(ordered) * 1000, 1),
            "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1000, 1),
        }


@dataclass(frozen=True)
class Workload:
    """`num_conversations` people who each say `num_turns` things, waiting for the answer in between."""

    persona: Persona
    num_conversations: int
    num_turns: int
    max_new_tokens: int

    def settings(self, index: int) -> GenerationSettings:
        """Return the settings of a conversation: its own seed, so that both ways generate the same tokens."""
        return GenerationSettings(seed=index, max_new_tokens=self.max_new_tokens)

    def turn(self, index: int, number: int) -> Turn:
        """Return what is said in a conversation."""
        return Turn(Role.USER, TEXTS[(index + number) % len(TEXTS)], name="Ann", author_id="ann")


def ask_alone(responder: Responder, work: Workload) -> Measured:
    """Ask the engine of this process, one thread a conversation."""

    def converse(index: int) -> Measured:
        measured, turns = Measured(), []
        for number in range(work.num_turns):
            turns.append(work.turn(index, number))
            started = time.perf_counter()
            reply = responder.respond(work.persona, turns, work.settings(index))
            measured.latencies_s.append(time.perf_counter() - started)
            measured.texts.append(reply.text)
            turns.append(Turn(Role.BOT, reply.text, name=work.persona.name))
        return measured

    started = time.perf_counter()
    total = Measured()
    with ThreadPoolExecutor(work.num_conversations) as pool:
        for measured in pool.map(converse, range(work.num_conversations)):
            total.add(measured)
    total.total_s = time.perf_counter() - started
    return total


async def ask_through_queue(url: str, work: Workload, attempt: int) -> Measured:
    """Ask as an adapter does: submit, read the outbox, acknowledge."""
    client = connect_async(url)
    outbox = Outbox(client, PLATFORM)
    waiting: dict[Conversation, asyncio.Future[str]] = {}

    async def receive() -> None:
        async for entry in outbox.entries():
            await outbox.ack(entry)
            waiting[entry.conversation].set_result(entry.text)

    async def converse(index: int, publisher: Publisher) -> Measured:
        measured = Measured()
        room = Conversation(PLATFORM, f"{attempt}-{work.num_conversations}-{index}")
        for number in range(work.num_turns):
            waiting[room] = asyncio.get_running_loop().create_future()
            started = time.perf_counter()
            await publisher.submit(Message(room, work.turn(index, number)))
            measured.texts.append(await waiting[room])
            measured.latencies_s.append(time.perf_counter() - started)
        return measured

    store = ConversationStore(connect(url))
    for index in range(work.num_conversations):
        room = Conversation(PLATFORM, f"{attempt}-{work.num_conversations}-{index}")
        chosen = ChannelSettings(persona=work.persona.name, generation=work.settings(index))
        await asyncio.to_thread(store.set_settings, room, chosen)
    receiving = asyncio.create_task(receive())
    total = Measured()
    with Publisher(url) as publisher:
        started = time.perf_counter()
        for measured in await asyncio.gather(*(converse(index, publisher) for index in range(work.num_conversations))):
            total.add(measured)
        total.total_s = time.perf_counter() - started
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    await client.aclose()
    return total


def environment(url: str, settings: Settings, log_level: str = "warning") -> dict[str, str]:
    """Return our environment with the settings that a worker process is to have."""
    return os.environ | {
        "REDIS_URL": url,
        "PERSONABOT_DATA_DIR": str(settings.data_dir),
        "PERSONABOT_MODEL": settings.model,
        "PERSONABOT_DEFAULT_PERSONA": settings.default_persona,
        "PERSONABOT_DEVICE": settings.device,
        "PERSONABOT_DTYPE": settings.dtype,
        "PERSONABOT_MAX_NUM_SEQS": str(settings.max_num_seqs),
        "PERSONABOT_LOG_LEVEL": log_level,
    }


@contextlib.contextmanager
def worker(url: str, settings: Settings) -> Iterator[None]:
    """Run a worker process until the block ends; it logs as much as an operator's, into a file."""
    mailbox, deadline = Mailbox(connect(url)), time.monotonic() + START_TIMEOUT_S
    num_before = mailbox.num_workers()
    path = Path(settings.data_dir) / f"worker{num_before}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.process"],
            env=environment(url, settings, log_level="info"),
            stdout=log,
            stderr=log,
        )
    try:
        while mailbox.num_workers() == num_before:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the worker did not start:\n{path.read_text(errors='replace')[-2000:]}")
            threading.Event().wait(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def compare(responder: Responder, url: str, work: Workload, num_rounds: int) -> dict[str, Any]:
    """Measure both ways in turns."""
    alone, queue = Measured(), Measured()
    for attempt in range(num_rounds):
        if attempt % 2 == 0:
            alone.add(ask_alone(responder, work))
        queue.add(asyncio.run(ask_through_queue(url, work, attempt)))
        if attempt % 2 == 1:
            alone.add(ask_alone(responder, work))
    same = sum(one == other for one, other in zip(alone.texts, queue.texts, strict=True))
    return {
        "num_conversations": work.num_conversations,
        "num_replies": len(queue.texts),
        "num_same_text": same,
        "alone": alone.summary(),
        "queue": queue.summary(),
        "overhead": round(queue.total_s / alone.total_s, 3),
        "added_p50_ms": round(queue.summary()["p50_ms"] - alone.summary()["p50_ms"], 1),
    }


def keep_up(loop: OpenLoop, responder: Responder, persona: Persona, url: str, settings: Settings) -> dict[str, Any]:
    """Look for what the engine alone, one worker and two workers keep up with; one worker runs already."""
    ways = {
        "alone": asyncio.run(loop.sustained(lambda: AloneWay(responder, persona))),
        "one worker": asyncio.run(loop.sustained(lambda: queue_at_rest(url))),
    }
    with worker(url, settings):
        ways["two workers"] = asyncio.run(loop.sustained(lambda: queue_at_rest(url)))
    return {way: summary(tried) for way, tried in ways.items()}


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="the queue's cost: through Celery and Redis ÷ engine alone")
    for name in ("conversations", "way", "replies/s", "p50 ms", "p95 ms", "time ÷ alone", "same text"):
        table.add_column(name, justify="right")
    for result in results:
        for way, overhead in (("alone", "1.000"), ("queue", f"{result['overhead']:.3f}")):
            numbers = result[way]
            cells = [numbers["replies_per_s"], numbers["p50_ms"], numbers["p95_ms"]]
            same = f"{result['num_same_text']}/{result['num_replies']}" if way == "queue" else ""
            table.add_row(str(result["num_conversations"]), way, *map(str, cells), overhead, same)
    Console().print(table)


def main(
    model: Annotated[str, typer.Option(help="folder, shipped name or hub id; the shipped default without it")] = "",
    conversations: Annotated[list[int] | None, typer.Option(help="how many at once (repeat for more)")] = None,
    turns: Annotated[int, typer.Option(min=1, help="what each person says in a round")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="how often both ways are asked")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 24,
    people: Annotated[int, typer.Option(min=1, help="conversations of the open loop")] = 200,
    seconds: Annotated[float, typer.Option(min=0, help="of the open loop at each rate; 0: no open loop")] = 15.0,
    device: str = "auto",
    dtype: str = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="one turn, one round, one second: only to see it run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of the table")] = False,
) -> None:
    """Print the queue's overhead at 1, 16 and 64 conversations, and what rate one worker and two keep up with."""
    turns, rounds = (1, 1) if quick else (turns, rounds)
    persona, ways = load_catalogue(None).get("Rusty"), {}
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        settings = Settings.model_validate(
            {
                "data_dir": folder,
                "model": model,
                "device": device,
                "dtype": dtype,
                "default_persona": persona.name,
                "log_level": "warning",
            }
        )
        configure_logging(settings)
        with running_server(settings) as url, worker(url, settings), start_responder(settings) as responder:
            ask_alone(responder, Workload(persona, 1, 1, max_new_tokens))
            asyncio.run(ask_through_queue(url, Workload(persona, 1, 1, max_new_tokens), -1))
            results = [
                compare(responder, url, Workload(persona, number, turns, max_new_tokens), rounds)
                for number in conversations or [1, 16, 64]
            ]
            if seconds:
                capacity = max(result["alone"]["replies_per_s"] for result in results)
                loop = OpenLoop(capacity, people, *((1.0, 1) if quick else (seconds, NUM_WINDOWS)))
                ways = keep_up(loop, responder, persona, url, settings)
            about = {"model": responder.loaded.name, "reason": responder.loaded.reason, "num_cpus": os.cpu_count()}
    if as_json:
        found = {"results": results, "open_loop": {"conversations": people, "seconds": seconds, "ways": ways}}
        print(json.dumps({**about, "turns": turns, "rounds": rounds, **found}))
        return
    show(results)
    if ways:
        Console().print(table(ways, people))


if __name__ == "__main__":
    typer.run(main)
