"""A real adapter process for tests, started as an operator starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.cli import environment


def start_adapter(platform: str, home: Path, **settings: str) -> subprocess.Popen[bytes]:
    """Start `personabot bot PLATFORM` with these environment variables."""
    command = [sys.executable, "-m", "personabot", "bot", platform]
    return subprocess.Popen(command, env=environment(home, **settings))


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process as a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def adapter_process(platform: str, home: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an adapter until the block ends; it is to leave cleanly on SIGTERM."""
    process = start_adapter(platform, home, **settings)
    try:
        yield process
        if process.poll() is None:
            process.terminate()
            assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
