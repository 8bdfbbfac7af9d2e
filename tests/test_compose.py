"""docker-compose.yml is valid, and every service's command works as a plain process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.helpers.cli import ROOT, environment
from worker.queue.connection import connect
from worker.queue.server import find_binary

FILE = ROOT / "docker-compose.yml"
PATIENCE_S = 90


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(YAML(typ="safe").load(FILE)["services"])


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def service(command: list[str], home: Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    log = (home / "service.log").open("w+", encoding="utf-8")
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=home, env=environment(home, **extra))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


def said(home: Path) -> str:
    return (home / "service.log").read_text(encoding="utf-8")


def ours(service: dict[str, Any]) -> list[str]:
    """Return what the image's entry point makes of a service's command."""
    return [sys.executable, "-m", "personabot", *service["command"]]


def test_the_file_follows_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_services_are_the_parts_of_up(services: dict[str, Any]) -> None:
    assert set(services) == {"redis", "worker", "training", "discord", "telegram"}
    assert services["training"]["profiles"] == ["training"]
    # Uploaded data, jobs and checkpoints are files that all of them see.
    assert all(services[name]["volumes"] == ["data:/data"] for name in services if name != "redis")
    assert services["worker"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert all("healthcheck" in service for service in services.values())


def test_every_target_is_a_stage_of_the_dockerfile(services: dict[str, Any]) -> None:
    stages = [line.split()[-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= set(stages)


def test_redis_starts_with_its_command_and_stops(services: dict[str, Any], home: Path) -> None:
    arguments = services["redis"]["command"][1:]
    socket = home / "s.sock"
    command = [str(find_binary()), *arguments, "--port", "0", "--unixsocket", str(socket), "--dir", str(home)]
    with service(command, home) as process:
        until(lambda: "Ready to accept connections" in said(home), process)
        with connect(f"unix://{socket}") as client:
            assert client.config_get("appendfsync")["appendfsync"] == "always"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_the_worker_gets_ready_is_healthy_and_stops(
    services: dict[str, Any], home: Path, tiny_model: Path, redis_server: str
) -> None:
    extra = {"REDIS_URL": redis_server, "PERSONABOT_MODEL": str(tiny_model), "PERSONABOT_LOG_JSON": "true"}
    health = [sys.executable, "-m", *services["worker"]["healthcheck"]["test"][1:]]
    with service(ours(services["worker"]), home, **extra) as process:
        until(lambda: '"ready"' in said(home), process)
        assert all(json.loads(line) for line in said(home).splitlines() if line.startswith("{"))
        assert subprocess.run(health, env=environment(home, **extra), capture_output=True, check=False).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert subprocess.run(health, env=environment(home, **extra), capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("platform", ["discord", "telegram"])
def test_an_adapter_without_its_token_ends_with_a_clear_message(
    services: dict[str, Any], home: Path, redis_server: str, platform: str
) -> None:
    extra = {"REDIS_URL": redis_server, f"{platform.upper()}_TOKEN": ""}
    with service(ours(services[platform]), home, **extra) as process:
        assert process.wait(PATIENCE_S) == 2
        assert f"{platform.upper()}_TOKEN is not set" in said(home)
