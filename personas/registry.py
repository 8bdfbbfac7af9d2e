"""The registry: the folder of checkpoints, immutable versions and one *current* per name. Knows files, not tensors.

    checkpoints/NAME/0003-1f2e3d4c5b6a/     a version: the checkpoint folder as it was added, and `lineage.json`
    checkpoints/NAME/current.json           the pointer: the promotions that hold, the last one is current
    checkpoints/chosen.json                 the name that is served where none is asked for
    checkpoints/voices.json                 the personas with a name of their own (see `voices`)
    checkpoints/.leases/                    what running processes use (see `leases`)

A *reference* is NAME (its current version), NAME@VERSION, NAME@3 or NAME@DIGEST. Shipped models are names
too, with a read-only version `shipped`. Any process may call any method; changes take a file lock.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from personas.checkpoint import DESCRIPTION_FILE, file_hashes, is_checkpoint, read_checkpoint, sha256
from personas.errors import CheckpointError, CheckpointRefused, NoEarlierVersion, RegistryError
from personas.leases import held_versions
from personas.lineage import Chosen, Lineage, Pointer, now, read_record, write_record
from personas.settings import Settings

SHIPPED_FOLDER: Final = Path(__file__).parent.parent / "models"
SHIPPED: Final = "shipped"
LINEAGE_FILE: Final = "lineage.json"
POINTER_FILE: Final = "current.json"
CHOSEN_FILE: Final = "chosen.json"
VOICES_FILE: Final = "voices.json"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION: Final = re.compile(r"\d{4,9}-[0-9a-f]{12}")
DEFAULT_KEPT: Final = 5


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a name. Its folder is a checkpoint folder that never changes, `lineage.json` apart."""

    name: str
    version: str
    folder: Path
    digest: str
    lineage: Lineage
    is_current: bool = False

    @property
    def reference(self) -> str:
        """NAME@VERSION, which stays this version whatever is promoted."""
        return f"{self.name}@{self.version}"

    @property
    def is_shipped(self) -> bool:
        """Whether it came with the program, and so cannot be changed or deleted."""
        return self.version == SHIPPED

    @property
    def sequence(self) -> int:
        """The order in which versions of a name were added; a shipped one is the first."""
        return 0 if self.is_shipped else int(self.version.partition("-")[0])


class Registry:
    """The versions under `folder`, and the models that are shipped in `shipped`."""

    def __init__(self, folder: Path, *, shipped: Path = SHIPPED_FOLDER) -> None:
        self.folder = folder
        self.shipped = shipped

    @classmethod
    def of(cls, settings: Settings) -> Registry:
        """Return the registry of a data folder."""
        return cls(settings.data_dir / "checkpoints")

    def names(self) -> list[str]:
        """Return every name that has a version."""
        own = [path.name for path in self.folder.glob("*") if NAME.fullmatch(path.name) and self._own(path.name)]
        return sorted({*own, *(path.name for path in self.shipped.glob("*") if is_checkpoint(path))})

    def versions(self, name: str) -> list[Version]:
        """Return the versions of `name`, oldest first; raises `RegistryError` if there are none."""
        found = [*self._shipped_version(name), *self._own(name)] if NAME.fullmatch(name) else []
        if not found:
            raise RegistryError(f"There is no checkpoint called {name!r}. There are: {', '.join(self.names())}.")
        top = self._top(name)
        return [replace(each, is_current=each.version == top) for each in found]

    def version(self, reference: str) -> Version:
        """Return what `reference` names, refused versions included; raises `RegistryError`."""
        name, _, wanted = reference.partition("@")
        versions = self.versions(name)
        if not wanted:
            return self._current_of(name, versions)
        matches = [each for each in versions if wanted in (each.version, str(each.sequence), f"{each.sequence:04}")]
        matches = matches or [each for each in versions if each.digest.startswith(wanted)]
        if len(matches) != 1:
            said = "several versions" if matches else "no version"
            there = ", ".join(each.version for each in versions)
            raise RegistryError(f"{name} has {said} {wanted!r}. There are: {there}.")
        return matches[0]

    def has(self, reference: str) -> bool:
        """Tell whether the name in `reference` is one of the registry's."""
        name = reference.partition("@")[0]
        return bool(NAME.fullmatch(name)) and bool(self._shipped_version(name) or self._own(name))

    def served(self, reference: str) -> Version:
        """Return what `reference` names for serving; raises `CheckpointRefused` where the gate said no."""
        version = self.version(reference)
        if version.lineage.is_refused:
            raise CheckpointRefused(
                f"{version.reference} is {version.lineage.judgement} by the gate and kept for a look only: "
                f"{'; '.join(version.lineage.reasons)}. An owner may promote it by force."
            )
        return version

    def add(self, checkpoint: Path, name: str, lineage: Lineage | None = None, *, version: str = "") -> Version:
        """Copy a checkpoint folder in as the next version of `name`; it is not current yet.

        The same content again is the version that is there already. `version` is what it is called on another machine;
        it then has to be what `lineage` says. Raises `CheckpointError` for an incomplete or damaged folder,
        `RegistryError` for a name that can't be one.
        """
        _check_name(name)
        if version and not VERSION.fullmatch(version):
            raise RegistryError(f"{version!r} can't be a version: expected something like 0003-1f2e3d4c5b6a.")
        record = lineage or Lineage()
        digest = read_checkpoint(checkpoint).digest
        with self._lock(name):
            description = sha256(checkpoint / DESCRIPTION_FILE)  # not part of the digest, but of what is served
            for there in self._own(name):
                if there.digest == digest and there.lineage.files.get(DESCRIPTION_FILE) == description:
                    return self.version(there.reference)
            scratch = self.folder / name / f".incoming-{uuid.uuid4().hex}"
            try:
                shutil.copytree(checkpoint, scratch)
                files = file_hashes(scratch, without=LINEAGE_FILE)
                if read_checkpoint(scratch).digest != digest or (version and files != record.files):
                    raise CheckpointError(f"{checkpoint} is not what it was when copying began. Add it again.")
                write_record(scratch / LINEAGE_FILE, record.model_copy(update={"digest": digest, "files": files}))
                newest = max((each.sequence for each in self._own(name)), default=0)
                version = version or f"{newest + 1:04}-{digest}"
                scratch.rename(self.folder / name / version)
            except OSError as error:
                raise RegistryError(f"{checkpoint} could not be added to {self.folder}: {error}") from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return self.version(f"{name}@{version}")

    def record(self, reference: str, **fields: Any) -> Version:
        """Note more in a version's lineage: `metrics`, `verdict`, or any other field but the content's hashes."""
        version = self.version(reference)
        if version.is_shipped:
            raise RegistryError(f"{version.reference} is read-only. Add it under a name of your own first.")
        with self._lock(version.name):
            data = {**read_record(version.folder / LINEAGE_FILE, Lineage).model_dump(), **fields}
            kept = {"digest": version.digest, "files": version.lineage.files}
            write_record(version.folder / LINEAGE_FILE, Lineage.model_validate({**data, **kept}))
        return self.version(version.reference)

    def promote(self, reference: str, *, by: str = "", is_forced: bool = False) -> Version:
        """Make a version current, after checking its content. Workers notice within seconds.

        Raises `CheckpointRefused` for a version that the gate refused unless `is_forced`, which its lineage then says
        for good, and `CheckpointError` for a damaged one.
        """
        version = self.version(reference)
        if is_forced and version.lineage.is_refused:
            version = self.record(version.reference, forced_by=by or "somebody")
        version = self.served(version.reference)
        self.verify(version.reference)
        with self._lock(version.name):
            pointer = self._pointer(version.name)
            if self._top(version.name) != version.version or pointer.is_withdrawn:
                write_record(self.folder / version.name / POINTER_FILE, pointer.promoted(version.version, by))
        return self.version(version.reference)

    def rollback(self, name: str, *, by: str = "") -> Version:
        """Make the version current that was so before; raises `NoEarlierVersion` where there is none."""
        with self._lock(name):
            versions = {each.version: each for each in self.versions(name)}
            pointer = self._pointer(name)
            below = tuple(promotion for promotion in pointer.promotions[:-1] if promotion.version in versions)
            if not pointer.promotions or not (below or SHIPPED in versions):
                raise NoEarlierVersion(f"{name} has no earlier version to go back to.")
            target = below[-1].version if below else SHIPPED
            self.verify(f"{name}@{target}")
            write_record(self.folder / name / POINTER_FILE, pointer.back_to(below, by))
        return self.version(f"{name}@{target}")

    def withdraw(self, name: str, *, by: str = "") -> None:
        """Take the first promotion of `name` back, there being no version to go back to; see `Pointer.is_withdrawn`."""
        with self._lock(name):
            write_record(self.folder / name / POINTER_FILE, self._pointer(name).withdrawn(by))

    def pointer(self, name: str) -> Pointer:
        """Return the promotions that hold, oldest first, and what was rolled back when and by whom."""
        self.versions(name)
        return self._pointer(name)

    def chosen(self) -> str | None:
        """Return the name that is served where none is asked for; None: the shipped default."""
        path = self.folder / CHOSEN_FILE
        return read_record(path, Chosen).name if path.is_file() else None

    def choose(self, name: str, *, by: str = "") -> Version:
        """Let `name` be served where none is asked for."""
        version = self.served(name.partition("@")[0])
        write_record(self.folder / CHOSEN_FILE, Chosen(name=version.name, by=by, at=now()))
        return version

    def stamp(self) -> frozenset[tuple[str, int, int]]:
        """Return something that differs after a change of who is answered by what, and is cheap to ask for often."""
        files = [*self.folder.glob(f"*/{POINTER_FILE}"), *self.folder.glob(CHOSEN_FILE), *self.folder.glob(VOICES_FILE)]
        return frozenset((str(file), file.stat().st_mtime_ns, file.stat().st_ino) for file in files)

    def verify(self, reference: str) -> None:
        """Hash the version's files anew; raises `CheckpointError` that names what is damaged."""
        version = self.version(reference)
        present = file_hashes(version.folder, without=LINEAGE_FILE) if not version.is_shipped else {}
        wrong = [
            f"{name} {'differs from what was added' if name in present else 'is gone'}"
            for name, digest in version.lineage.files.items()
            if present.get(name) != digest
        ]
        if wrong:
            raise CheckpointError(f"{version.reference} is damaged: {', '.join(wrong)}. Add or pull it again.")
        read_checkpoint(version.folder)

    def prune(self, name: str, *, keep: int = DEFAULT_KEPT, pinned: Iterable[str] = ()) -> list[Version]:
        """Delete old versions of `name` and return them.

        The last `keep`, the current one, the one a rollback goes to, what a process holds, the bases of what is kept
        and what the references `pinned` name stay (see `voices.pinned`).
        """
        with self._lock(name):
            versions = [each for each in self.versions(name) if not each.is_shipped]
            targets = {promotion.version for promotion in self._pointer(name).promotions[-2:]}
            bases = {version.lineage.base for other in self.names() for version in self.versions(other)}
            kept = {*held_versions(self.folder), *bases, *(f"{name}@{target}" for target in targets)}
            for reference in pinned:
                with contextlib.suppress(RegistryError):  # of another registry, or no version at all
                    kept.add(self.version(reference).reference)
            goes = [each for each in versions[: max(len(versions) - keep, 0)] if each.reference not in kept]
            for version in goes:
                trash = version.folder.with_name(f".gone-{version.version}-{uuid.uuid4().hex}")
                version.folder.rename(trash)  # first, so that nobody begins to read what is being deleted
                shutil.rmtree(trash)
        return goes

    def _top(self, name: str) -> str:
        """The version that the pointer names: without one, what is shipped."""
        promotions = self._pointer(name).promotions
        return promotions[-1].version if promotions else SHIPPED

    def _current_of(self, name: str, versions: list[Version]) -> Version:
        if current := next((each for each in versions if each.is_current), None):
            return current
        there = ", ".join(each.version for each in versions)
        raise RegistryError(f"{name} has no current version: promote one of {there}.")

    def _pointer(self, name: str) -> Pointer:
        path = self.folder / name / POINTER_FILE
        return read_record(path, Pointer) if path.is_file() else Pointer()

    def _shipped_version(self, name: str) -> list[Version]:
        folder = self.shipped / name
        if not NAME.fullmatch(name) or not is_checkpoint(folder):
            return []
        checkpoint = read_checkpoint(folder)
        return [Version(name, SHIPPED, folder, checkpoint.digest, Lineage(base=checkpoint.base))]

    def _own(self, name: str) -> list[Version]:
        found = []
        for folder in sorted((self.folder / name).glob("[0-9]*-*")):
            if (folder / LINEAGE_FILE).is_file():
                lineage = read_record(folder / LINEAGE_FILE, Lineage)
                found.append(Version(name, folder.name, folder, lineage.digest, lineage))
        return sorted(found, key=lambda each: (each.sequence, each.version))

    def _lock(self, name: str) -> FileLock:
        _check_name(name)
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / name / ".lock")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"{name!r} can't be a checkpoint's name: expected up to 64 letters, digits, '.', '_' and '-', "
            "a letter or digit first."
        )
