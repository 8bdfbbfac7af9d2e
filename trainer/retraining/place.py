"""Where a job's half-done work belongs: a data folder and a device, each by one name."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path


def place_id(folder: Path) -> str:
    """Return the name that a data folder keeps wherever it is mounted: half-done jobs belong to it."""
    path = folder / "place"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), path.open("x", encoding="ascii") as file:
        file.write(uuid.uuid4().hex)
    return path.read_text(encoding="ascii")


def device_id(asked: str) -> str:
    """Return the one name of the device that a setting means: `auto`, `cuda` and `cuda:0` may all be the same."""
    from worker.device import choose_device  # torch, which whoever only watches children does without

    device, _ = choose_device(asked)
    return device.type if device.index is None and device.type != "cuda" else f"{device.type}:{device.index or 0}"
