"""Watching children: the back-off, crashes, refusals, and the order of stopping. The children are real processes."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from personabot import supervise
from personabot.supervise import Child, Supervisor, pause_before_restart

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def plain_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = supervise.subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return real([sys.executable, "-c", command[-1]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(supervise.subprocess, "Popen", popen)


def program(name: str, code: str, log_file: Path) -> Child:
    return Child(name, [code], log_file)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [pause_before_restart(n) for n in (1, 2, 3, 4, 8, 9, 1000)] == [0.5, 1, 2, 4, 60, 60, 60]


def test_a_crashed_child_is_started_again_after_its_pause(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    supervisor = Supervisor(said.append, clock)
    child = program("worker", SLEEPS, tmp_path / "log")
    supervisor.start(child)
    assert child.process is not None
    first = child.process.pid
    child.process.kill()
    until(lambda: not child.is_running)
    supervisor.step()
    assert "killed by SIGKILL, again in 0.5 s" in said[-1].replace("(", "").replace(")", "")
    supervisor.step()
    assert child.process is None
    clock.now += 0.5
    supervisor.step()
    assert child.process is not None
    assert child.process.pid != first
    supervisor.stop()


def test_crashes_in_a_row_wait_longer_and_health_forgives(tmp_path: Path) -> None:
    clock = Clock()
    supervisor = Supervisor(lambda _: None, clock)
    child = program("discord", "raise SystemExit(1)", tmp_path / "log")
    supervisor.start(child)
    pauses = []
    for ran_s in (0, 0, 0, supervise.HEALTHY_S):
        until(lambda: not child.is_running)
        clock.now += ran_s
        supervisor.step()
        pauses.append(child.restart_at - clock.now)
        clock.now = child.restart_at
        supervisor.step()
    assert pauses == [0.5, 1, 2, 0.5]
    supervisor.stop()


def test_a_misconfigured_child_is_not_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    supervisor = Supervisor(said.append, clock)
    child = program("telegram", "raise SystemExit(2)", tmp_path / "log")
    supervisor.start(child)
    until(lambda: not child.is_running)
    supervisor.step()
    clock.now += 1000
    supervisor.step()
    assert child.is_given_up
    assert child.process is None
    assert "need mending" in said[-1]


def test_children_stop_in_reverse_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    says_goodbye = (
        "import signal, sys, time\n"
        "def bye(*_): print('{name}', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)"
    )
    supervisor = Supervisor(lambda _: None)
    for name in ("worker", "discord", "telegram"):
        supervisor.start(program(name, says_goodbye.replace("{name}", name), log))
    until(lambda: log.read_text().count("up") == 3)
    supervisor.stop()
    assert log.read_text().split()[3:] == ["telegram", "discord", "worker"]


def test_a_child_that_ignores_the_request_is_made_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "STOP_TIMEOUT_S", 0.2)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"
    supervisor = Supervisor(lambda _: None)
    child = program("worker", stubborn, log)
    supervisor.start(child)
    until(lambda: log.read_text() != "")
    supervisor.stop()
    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL
