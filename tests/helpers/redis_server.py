"""A real embedded server for the tests: one for the session, emptied before each test that asks for it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from worker.queue.connection import connect
from worker.queue.server import EmbeddedServer


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[EmbeddedServer]:
    """Start the server of this test session in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        server = EmbeddedServer(Path(folder) / "redis")
        server.start()
        with contextlib.closing(connect(server.url)) as client:
            client.config_set("appendfsync", "no")  # what survives a power cut is tested with servers of their own
        yield server
        server.release()


@pytest.fixture
def redis_server(embedded_server: EmbeddedServer) -> str:
    """Return the URL of an empty server."""
    client = connect(embedded_server.url)
    client.flushall()
    client.close()
    return embedded_server.url


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[redis.Redis]:
    """Return a client of an empty server."""
    client = connect(redis_server)
    yield client
    client.close()
