"""Child processes that are watched: started, restarted with a growing pause when they crash, stopped in order.

Knows nothing of what the children do. `pause_before_restart` is the policy, a pure function.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 60.0
# Who ran this long before crashing starts over with the shortest pause.
HEALTHY_S: Final = 60.0
# A child that ends with this status was refused what it needs (see personabot.cli.main); trying again cannot help.
MISCONFIGURED: Final = 2
# A worker finishes the replies it is at; what it does not finish in time, another worker answers.
STOP_TIMEOUT_S: Final = 30.0


def pause_before_restart(num_crashes: int) -> float:
    """Return how long to wait after that many crashes in a row: 0.5 s, 1 s, 2 s … up to a minute."""
    return float(min(FIRST_PAUSE_S * 2 ** (min(num_crashes, 20) - 1), MAX_PAUSE_S))


@dataclass
class Child:
    """One process: what to run, where its output goes (None: to ours), and how it has been doing."""

    name: str
    arguments: Sequence[str]
    log_file: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started_at: float = field(default=0.0, init=False)
    restart_at: float = field(default=0.0, init=False)
    num_crashes: int = field(default=0, init=False)
    is_given_up: bool = field(default=False, init=False)

    @property
    def is_running(self) -> bool:
        """Tell whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def start(self, now: float) -> None:
        """Start the process; it ends when we do, however we end (see `personabot.child`)."""
        out: int | None = None
        if self.log_file is not None:
            out = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "personabot.child", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=out if out is not None else sys.stderr.fileno(),
                stderr=out,
                # Ctrl-C in the terminal reaches us alone, so that the order of stopping is ours.
                start_new_session=True,
            )
        finally:
            if out is not None:
                os.close(out)
        self.started_at = now

    def stop(self, timeout_s: float) -> None:
        """Ask the process to end, and make it end when it has not after `timeout_s`."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            if self.process.stdin is not None:
                self.process.stdin.close()

    def clear(self) -> int:
        """Let go of a process that has ended; return its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.stdin is not None:
            process.stdin.close()
        return process.wait()


class Supervisor:
    """Watches children; `say` tells the operator what happens to them."""

    def __init__(self, say: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self.children: list[Child] = []
        self._say = say
        self._now = now

    def start(self, child: Child) -> None:
        """Start a child and watch it from now on."""
        self.children.append(child)
        child.start(self._now())

    def step(self) -> None:
        """Look after every child once: note who crashed, restart whose pause is over."""
        for child in self.children:
            if child.is_running or child.is_given_up:
                continue
            if child.process is not None:
                self._note_crash(child)
            elif self._now() >= child.restart_at:
                self._say(f"{child.name}: starting again")
                child.start(self._now())

    def stop(self) -> None:
        """Stop the children in the reverse of the order in which they were started."""
        for child in reversed(self.children):
            child.stop(STOP_TIMEOUT_S)

    def _note_crash(self, child: Child) -> None:
        status = child.clear()
        details = f"; see {child.log_file}" if child.log_file else ""
        if status == MISCONFIGURED:
            child.is_given_up = True
            self._say(f"{child.name}: not running, its settings need mending{details} (personabot doctor helps)")
            return
        was_healthy = self._now() - child.started_at >= HEALTHY_S
        child.num_crashes = 1 if was_healthy else child.num_crashes + 1
        pause_s = pause_before_restart(child.num_crashes)
        child.restart_at = self._now() + pause_s
        self._say(f"{child.name}: ended unexpectedly ({_why(status)}), again in {pause_s:g} s{details}")


def _why(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"status {status}"
