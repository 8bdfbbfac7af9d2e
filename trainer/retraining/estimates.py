"""What a run is going to take, by what the last one like it took here: time, memory, disk.

Owns `training/estimates.json` in the data folder. Whether it is too much is decided where budgets are (`job_process`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from personas.settings import Settings
from trainer.retraining.recipes import Base

FILE: Final = "estimates.json"
# Bytes a weight, where all of them are trained: itself, its gradient and Adam's two moments, in fp32.
BYTES_TRAINED: Final = 16
BYTES_FROZEN: Final = 2  # below an adapter, in bf16


def remember(settings: Settings, base: Base, *, tokens_per_s: float, peak_mib: int) -> None:
    """Keep what a run took on this device for bases of this size; of a run on a GPU the memory is the GPU's."""
    path = _path(settings)
    known = _read(path)
    known[_key(settings, base)] = {"tokens_per_s": round(tokens_per_s, 1), "peak_mib": peak_mib}
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(known), encoding="utf-8")
    scratch.replace(path)


def seconds(settings: Settings, base: Base, num_tokens: int) -> float | None:
    """Return how long a run will take by the speed of the last one like it; None if there was none."""
    speed = _last(settings, base).get("tokens_per_s")
    return num_tokens / speed if speed else None


def memory_bytes(settings: Settings, base: Base, device: str) -> int:
    """Return what a run will hold of this machine's memory: what the last one like it did, or what it can't do without.

    On a GPU (`device` is cpu or another type of torch's) it is not this memory that a run needs, and 0 is returned.
    """
    if device != "cpu":
        return 0
    least = base.num_weights * (BYTES_FROZEN if base.is_large else BYTES_TRAINED)
    return max(int(_last(settings, base).get("peak_mib", 0)) << 20, least)


def disk_bytes(base: Base) -> int:
    """Return what a run writes at most: two training states (weights and Adam's two moments, fp32) and two copies."""
    return 300_000_000 if base.is_large else 14 * base.num_bytes


def _last(settings: Settings, base: Base) -> dict[str, Any]:
    """Return what the last run like it took; empty if there was none."""
    return _read(_path(settings)).get(_key(settings, base), {})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what is known; nothing where there is no file, or one that cannot be read: the next run writes it anew."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _path(settings: Settings) -> Path:
    return settings.data_dir / "training" / FILE


def _key(settings: Settings, base: Base) -> str:
    """Name what a run's speed and memory depend on."""
    return f"{settings.device}:{settings.training_threads}:{base.num_bytes}"
