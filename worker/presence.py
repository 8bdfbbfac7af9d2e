"""What others know of a pool of models: the versions it holds against deletion, what it has loaded, what it could not.

Nothing that goes wrong in telling them keeps anybody from being answered.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from personas import leases
from worker.queue.loaded import Board, LoadedState

log = structlog.get_logger(__name__)


class Presence:
    """The leases of one pool on versions under `folder`, and its place on the board."""

    def __init__(self, folder: Path, board: Board) -> None:
        self._folder = folder
        self._board = board
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{id(self):x}"

    def hold(self, references: Iterable[str]) -> None:
        """Let nobody delete exactly these versions; "" is none. To be renewed within `leases.LEASE_S`."""
        with contextlib.suppress(OSError):  # a data folder that can't be written: then nobody deletes in it either
            leases.hold(self._folder, self._holder, filter(None, references))

    def show(self, models: Sequence[LoadedState]) -> None:
        """Say what is loaded."""
        try:
            self._board.show(models)
        except Exception as error:
            log.warning("loaded models not shown, trying again", error=repr(error))

    def failed(self, reference: str, reason: str) -> None:
        """Tell administrators what is not loaded, and why."""
        log.error("model not loaded, what was there serves on", reference=reference, why=reason)
        with contextlib.suppress(Exception):
            self._board.failed(reference, reason)

    def release(self) -> None:
        """Be known for nothing any more."""
        with contextlib.suppress(OSError):
            leases.release(self._folder, self._holder)
        with contextlib.suppress(Exception):
            self._board.show([])
