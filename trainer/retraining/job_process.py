"""The child process in which a job is checked, trained and judged: its share of the machine, its budgets, its end.

Knows nothing of training. A child that exceeds a budget is stopped with the figure as the reason; so is the child of a
parent that dies, since it watches its standard input (`personabot.child`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from personas.errors import PersonabotError
from personas.settings import Settings

STOP_TIMEOUT_S: Final = 60.0  # saving a large model takes its time
SHARE_OF_FREE_RAM: Final = 0.8  # where the settings do not say
# Anonymous memory that was asked for, touched or not, may be twice what is in use before the system says no.
ASKED_PER_USED: Final = 2
LOG_FILE: Final = "output.log"
GIB: Final = 2**30


class StillRunning(PersonabotError):
    """The child of an earlier worker is still at the same folder, saving what it has."""


class OverBudget(PersonabotError):
    """A job needs more disk, memory or time than it may have; says how much and what the limit is."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job may use: resident memory in bytes, computing time in seconds, the disk space it must leave."""

    memory: int
    seconds: float
    free_disk: int
    num_threads: int
    niceness: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """Return the budget of the settings; what they leave open is a share of what is free now."""
        memory = int(settings.training_memory_gb * GIB) or int(available_memory() * SHARE_OF_FREE_RAM)
        threads = settings.training_threads or max(1, (os.cpu_count() or 2) // 2)
        return cls(
            memory,
            settings.training_hours * 3600,
            int(settings.training_free_disk_gb * GIB),
            threads,
            settings.training_niceness,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job uses now, in the units of `Budget`; `needs_disk` is what it is still going to write."""

    memory: int = 0
    seconds: float = 0.0
    free_disk: int = 0
    needs_disk: int = 0


def forecast(report: Mapping[str, Any], free_disk: int) -> Usage:
    """Return what a dry run expects the training to use; 0 where it doesn't know."""
    return Usage(
        int(report.get("memory_bytes") or 0),
        float(report.get("seconds") or 0.0),
        free_disk,
        int(report.get("disk_bytes") or 0),
    )


def excess(usage: Usage, budget: Budget) -> str:
    """Return which budget is exceeded, in words; empty if none is."""
    if usage.memory > budget.memory:
        return f"it takes {usage.memory / GIB:.1f} GB of memory, and may take {budget.memory / GIB:.1f} GB"
    if usage.seconds > budget.seconds:
        return f"it takes {usage.seconds / 3600:.1f} hours, and may take {budget.seconds / 3600:.1f}"
    if usage.free_disk - usage.needs_disk < budget.free_disk:
        return (
            f"{usage.free_disk / GIB:.1f} GB of disk are free; it needs {usage.needs_disk / GIB:.1f} GB more, "
            f"and {budget.free_disk / GIB:.1f} GB must stay free"
        )
    return ""


def available_memory() -> int:
    """Return how many bytes of memory can be had without swapping; where the system does not say, 8 GB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * GIB


class JobProcess:
    """One `personabot` command as a child with less priority than whoever answers people."""

    def __init__(self, arguments: Sequence[str], folder: Path, budget: Budget) -> None:
        """Start the command; raises `StillRunning` as long as another child works in `folder`."""
        environment = os.environ | {"OMP_NUM_THREADS": str(budget.num_threads)}
        with only_child(folder) as lock, (folder / LOG_FILE).open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "personabot.child", *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
                pass_fds=lock,  # held by the child from here on, whoever of us ends first
            )
        self._limit(budget)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def status(self, timeout_s: float) -> int | None:
        """Wait so long for the child's end; return its exit status (negative: the signal), or None if it runs on."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._close()
        return status

    def memory(self) -> int:
        """Return the child's resident memory in bytes; 0 where the system does not say."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        return 0

    def stop(self) -> None:
        """Ask the child to save and end, and end it when it has not in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _limit(self, budget: Budget) -> None:
        """Set priority and memory limit from outside: code between fork and exec is not safe beside threads."""
        with contextlib.suppress(OSError):  # it has ended already, and its status says why
            os.setpriority(os.PRIO_PROCESS, self.pid, budget.niceness)
            if sys.platform == "linux":
                import resource

                most = budget.memory * ASKED_PER_USED
                resource.prlimit(self.pid, resource.RLIMIT_DATA, (most, most))

    def _close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


@contextlib.contextmanager
def only_child(folder: Path) -> Iterator[tuple[int, ...]]:
    """Yield the descriptor of a lock that the system lets go of when the last process that has it is dead."""
    if find_spec("fcntl") is None:
        yield ()
        return
    import fcntl

    with (folder / "child.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StillRunning(f"another process works in {folder}") from None
        yield (lock.fileno(),)


def free_disk(folder: Path) -> int:
    """Return how many bytes are free where `folder` is."""
    return shutil.disk_usage(folder).free


def last_words(folder: Path) -> str:
    """Return the last line of a child's output, which says why it ended."""
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
