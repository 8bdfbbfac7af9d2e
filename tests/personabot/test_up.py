"""`personabot up` as a process, with the tiny model: chat through the queue, a killed worker, stopping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from personas.catalogue import load_catalogue
from tests.helpers.cli import environment, personabot
from tests.helpers.telegram_server import TOKEN, TelegramServer
from worker.queue.server import EmbeddedServer

PERSONA = load_catalogue(None).names()[0]
PATIENCE_S = 90


class Up:
    """A running `personabot up`, its lines, and its children."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self.readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self.readers:
            reader.start()

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def wait_for(self, text: str) -> str:
        """Return the next line that holds `text`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self.lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                pytest.fail(f"{text!r} did not come; so far:\n" + "\n".join(self.seen))
            self.seen.append(line)
            if text in line:
                return line

    def child(self, name: str) -> psutil.Process:
        """Return the running child with this command."""
        for process in psutil.Process(self.process.pid).children():
            if name in process.cmdline():
                return process
        raise AssertionError(f"no child {name}")

    def end(self) -> None:
        """Stop it if it still runs, and close our ends of its pipes."""
        try:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for reader in self.readers:
            reader.join(PATIENCE_S)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.lines.put(line.rstrip("\n"))


@contextlib.contextmanager
def up(home: Path, model: Path, **extra: str) -> Iterator[Up]:
    process = subprocess.Popen(
        [sys.executable, "-m", "personabot", "up", "--model-path", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=home,
        env=environment(home, PERSONABOT_DEFAULT_PERSONA=PERSONA, PERSONABOT_LEASE_S="2", **extra),
    )
    running = Up(process)
    try:
        yield running
    finally:
        running.end()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_it_says_what_it_starts_chats_and_stops_everything_at_the_end_of_the_input(
    home: Path, tiny_model: Path
) -> None:
    with up(home, tiny_model) as running:
        running.wait_for("started  queue")
        running.wait_for("started  worker")
        assert "no DISCORD_TOKEN" in running.wait_for("left out discord")
        assert "no TELEGRAM_TOKEN" in running.wait_for("left out telegram")
        running.wait_for(f"{PERSONA}: ")
        running.say("hello")
        running.wait_for(f"{PERSONA}: ")
        second = personabot("up", home=home)
        assert second.returncode == 1
        assert "running already" in second.stderr
        worker = running.child("worker")
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(PATIENCE_S) == 0
        assert not is_alive(worker)
        assert not EmbeddedServer(home / "redis").is_running()


def test_a_killed_worker_is_restarted_and_the_reply_still_comes(home: Path, tiny_model: Path) -> None:
    with up(home, tiny_model) as running:
        running.wait_for(f"{PERSONA}: ")
        running.say("hello")
        running.wait_for(f"{PERSONA}: ")
        worker = running.child("worker")
        worker.send_signal(signal.SIGSTOP)
        running.say("are you still there?")
        worker.kill()
        running.wait_for("worker: ended unexpectedly (killed by SIGKILL)")
        running.wait_for("worker: starting again")
        running.wait_for(f"{PERSONA}: ")


def test_children_end_when_their_parent_is_killed_and_the_conversation_is_kept(home: Path, tiny_model: Path) -> None:
    with up(home, tiny_model) as running:
        running.wait_for(f"{PERSONA}: ")
        running.say("hello")
        running.wait_for(f"{PERSONA}: ")
        worker = running.child("worker")
        os.kill(running.process.pid, signal.SIGKILL)
        psutil.wait_procs([worker], timeout=PATIENCE_S)
        assert not is_alive(worker)
    with up(home, tiny_model) as running:
        running.wait_for("remembers your conversation")


def test_a_worker_that_cannot_run_ends_everything_with_its_reason(home: Path) -> None:
    with up(home, home / "no-such-model") as running:
        assert running.process.wait(PATIENCE_S) == 1
        running.wait_for("no-such-model")


async def test_with_a_token_the_adapter_talks_there(home: Path, tiny_model: Path) -> None:
    async with TelegramServer() as telegram:
        user = telegram.user("Bo")
        chat = telegram.private_chat(user)
        with up(home, tiny_model, TELEGRAM_TOKEN=TOKEN, PERSONABOT_TELEGRAM_API=telegram.url) as running:
            await asyncio.to_thread(running.wait_for, "started  telegram")
            await telegram.say(chat, user, "hello")
            await telegram.until(lambda: telegram.texts(chat), PATIENCE_S)
            running.process.terminate()
            assert await asyncio.to_thread(running.process.wait, PATIENCE_S) == 0
            assert not EmbeddedServer(home / "redis").is_running()
    assert telegram.violations == []


async def test_a_refused_token_ends_everything_with_the_reason(home: Path, tiny_model: Path) -> None:
    async with TelegramServer() as telegram:
        with up(home, tiny_model, TELEGRAM_TOKEN="1:wrong", PERSONABOT_TELEGRAM_API=telegram.url) as running:
            assert await asyncio.to_thread(running.process.wait, PATIENCE_S) == 1
            running.wait_for("refuses the token")
            running.wait_for("No adapter can run")
