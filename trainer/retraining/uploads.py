"""Attachments in `uploads/` of the data folder: they go as soon as nobody is going to read them any more.

A dry run copies what it reads into the job's folder, so that an attachment is needed until then and not after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from worker.queue.job import UPLOADS, Order

log = structlog.get_logger(__name__)

MAX_AGE_S: Final = 24 * 3600.0


def forget(data_dir: Path, order: Order) -> None:
    """Delete the attachment of an order that has been read or is over; data sets that lie ready are not ours."""
    if Path(order.data).parts[:1] == (UPLOADS,):
        _delete(data_dir / order.data)


def forget_old(data_dir: Path, waiting: Iterable[Order], *, now: float) -> None:
    """Delete what is older than a day at `now` (seconds since 1970) and belongs to none of the `waiting` orders."""
    wanted = {data_dir / order.data for order in waiting}
    for path in (data_dir / UPLOADS).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path not in wanted and now - path.stat().st_mtime > MAX_AGE_S:
                _delete(path)


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("attachment not deleted", file=path.name, error=repr(error))
