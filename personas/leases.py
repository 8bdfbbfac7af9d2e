"""Who uses which checkpoint version, so that nothing in use is deleted. Owns the lease files beside the registry.

A lease is a file that its holder writes anew now and then; one that was not for `LEASE_S` belongs to a dead process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from personas.errors import RegistryError
from personas.lineage import read_record, write_record

LEASE_S: Final = 120.0
FOLDER: Final = ".leases"


class Lease(BaseModel):
    """Which versions (NAME@VERSION) somebody uses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    holder: str
    versions: tuple[str, ...]


def hold(registry: Path, holder: str, versions: Iterable[str]) -> None:
    """Note that `holder` (such as host:pid) uses exactly these versions from now on; renew within `LEASE_S`."""
    write_record(_file(registry, holder), Lease(holder=holder, versions=tuple(sorted(versions))))


def release(registry: Path, holder: str) -> None:
    """Take the lease back."""
    _file(registry, holder).unlink(missing_ok=True)


def held_versions(registry: Path) -> dict[str, list[str]]:
    """Return the versions in use and by whom; leases of the dead are deleted on the way."""
    held: dict[str, list[str]] = {}
    for path in sorted((registry / FOLDER).glob("[!.]*.json")):
        try:
            if time.time() - path.stat().st_mtime > LEASE_S:
                path.unlink(missing_ok=True)
                continue
            lease = read_record(path, Lease)
        except (FileNotFoundError, RegistryError):  # released meanwhile, or no lease of ours
            continue
        for version in lease.versions:
            held.setdefault(version, []).append(lease.holder)
    return held


def _file(registry: Path, holder: str) -> Path:
    return registry / FOLDER / f"{quote(holder, safe='')}.json"
