"""The embedded server: started once, found again, stopped by its last user, on disk whatever happens."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from personas.settings import Settings
from worker.queue.connection import broker_url, client_url, connect
from worker.queue.errors import NoServer
from worker.queue.server import EmbeddedServer, find_binary, redis_url, running_server


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "redis"
    EmbeddedServer(tmp_path / "redis").stop()


def test_what_was_written_survives_kill_minus_nine(folder: Path) -> None:
    server = EmbeddedServer(folder)
    server.start()
    with contextlib.closing(connect(server.url)) as client:
        client.set("key", "value")
        server.kill()
        assert not server.is_running()
        server.start()
        assert client.get("key") == "value"
    server.release()


def test_last_user_stops_the_server(folder: Path) -> None:
    first, second = EmbeddedServer(folder), EmbeddedServer(folder)
    first.start()
    second.start()
    first.release()
    assert second.is_running()
    second.release()
    assert not second.is_running()


def test_stale_socket_is_no_obstacle(folder: Path) -> None:
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "valkey.sock"))
    server = EmbeddedServer(folder)
    server.start()
    assert server.is_running()
    server.release()


def test_folder_too_deep_for_a_socket_gets_a_port_with_a_password(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ("deep " * 20).strip())
    server.start()
    try:
        assert server.url.startswith("redis://:")
        assert EmbeddedServer(server.folder).is_running()
        host, port = server.url.split("@")[1].split("/")[0].split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"PING\r\n")
            assert b"NOAUTH" in stranger.recv(100)
    finally:
        server.release()


def test_port_stays_the_same_after_a_restart(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ("deep " * 20).strip())
    server.folder.mkdir()
    address = {"port": quiet_port(), "password": "secret"}
    (server.folder / "address.json").write_text(json.dumps(address), encoding="utf-8")
    server.start()
    url = server.url
    server.kill()
    server.start()
    assert server.url == url == f"redis://:secret@127.0.0.1:{address['port']}/0"
    server.release()


def test_processes_that_start_at_once_share_one_server(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pids = pool.map(_start_and_ask_for_its_pid, [str(folder)] * 3)
    assert len(set(pids)) == 1


def test_operators_own_redis_is_used_as_it_is(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://example.org:1/0", data_dir=tmp_path)
    with running_server(settings) as url:
        assert url == redis_url(settings) == "redis://example.org:1/0"
    assert list(tmp_path.iterdir()) == []


def test_system_without_a_server_is_told_of_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoServer, match="REDIS_URL"):
        find_binary()


def test_celery_and_redis_py_spell_a_socket_differently() -> None:
    assert broker_url("unix:///a/b.sock") == "redis+socket:///a/b.sock"
    assert client_url("redis+socket:///a/b.sock") == "unix:///a/b.sock"


def quiet_port() -> int:
    """Return a free port below those that systems hand out by themselves, so that nobody gets it for a moment."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _start_and_ask_for_its_pid(folder: str) -> int:
    server = EmbeddedServer(Path(folder))
    server.start()
    with contextlib.closing(connect(server.url)) as client:
        return int(client.info("server")["process_id"])
