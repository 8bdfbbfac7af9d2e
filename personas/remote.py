"""Checkpoint versions on another machine: push, pull and follow through fsspec, so that any store it knows will do.

A remote is laid out like the registry's folder. `lineage.json` is written last: a version without it is not there yet.
With a name that is current go the personas that were given it.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import structlog

from personas.errors import CheckpointError, PersonabotError, RegistryError
from personas.lineage import Lineage, Pointer, Promotion, Voice, Voices, read_record
from personas.registry import LINEAGE_FILE, POINTER_FILE, VOICES_FILE, Registry, Version
from personas.voices import give, key_of, read_voices, withdraw

log = structlog.get_logger(__name__)

FOLLOW_S: Final = 15.0
BY: Final = "remote"  # who promoted here what was promoted there


def push(registry: Registry, reference: str, url: str, *, by: str = "") -> Version:
    """Copy a version to `url` (s3://bucket/folder, hf://…, file:///…); the current one becomes current there too."""
    version = registry.version(reference)
    if version.is_shipped:
        raise RegistryError(f"{version.reference} comes with the program: every machine has it.")
    registry.verify(version.reference)
    with _filesystem(url) as (files, root):
        folder = f"{root}/{version.name}/{version.version}"
        files.makedirs(folder, exist_ok=True)
        for name in (*version.lineage.files, LINEAGE_FILE):
            files.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
            files.put_file(str(version.folder / name), f"{folder}/{name}")
        if version.is_current:
            pointer = Pointer(promotions=(Promotion(version=version.version, by=by),))
            files.pipe_file(f"{root}/{version.name}/{POINTER_FILE}", pointer.model_dump_json().encode())
            _push_voices(files, root, version.name, read_voices(registry))
    return version


def pull(registry: Registry, reference: str, url: str) -> Version:
    """Copy a version from `url` into the registry, under the same version, and check it; it is not promoted.

    NAME alone is what is current there. Raises `RegistryError` for what is not there, `CheckpointError` where what
    arrived is not what was pushed.
    """
    name, _, wanted = reference.partition("@")
    with _filesystem(url) as (files, root), tempfile.TemporaryDirectory() as scratch:
        wanted = _remote_version(files, f"{root}/{name}", wanted)
        if registry.has(name) and any(each.version == wanted for each in registry.versions(name)):
            return registry.version(f"{name}@{wanted}")
        arrived = Path(scratch, "checkpoint")
        arrived.mkdir()
        lineage = Path(scratch, LINEAGE_FILE)
        files.get_file(f"{root}/{name}/{wanted}/{LINEAGE_FILE}", str(lineage))
        record = read_record(lineage, Lineage)
        for file in record.files:
            path = arrived / file
            if not path.resolve().is_relative_to(arrived.resolve()):
                raise CheckpointError(f"{url}: {name}@{wanted} lists the file {file!r} outside of its folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}/{wanted}/{file}", str(path))
        return registry.add(arrived, name, record, version=wanted)


class Follower:
    """A thread that makes current here what becomes current at `url`, whatever the name, and gives voices as there.

    Only a change there is followed: what somebody promotes or gives here stays until then.
    """

    def __init__(self, registry: Registry, url: str, *, pause_s: float = FOLLOW_S) -> None:
        self._registry, self._url, self._pause_s = registry, url, pause_s
        self._seen: dict[str, str] = {}
        self._voices: dict[str, Voice] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)

    def look(self) -> None:
        """Pull and promote what is new; a store that is away or a damaged version is logged, and tried again."""
        try:
            current = currents(self._url)
        except RegistryError as error:
            log.warning("remote checkpoints not seen, trying again", error=str(error))
            return
        for name, version in current.items():
            try:
                if self._seen.get(name) != version:
                    self._registry.promote(pull(self._registry, f"{name}@{version}", self._url).reference, by=BY)
                    self._seen[name] = version
                    log.info("followed the remote", checkpoint=f"{name}@{version}")
            except PersonabotError as error:
                log.warning("remote checkpoint not taken, trying again", checkpoint=name, error=str(error))
        try:
            self._follow(voices_at(self._url))
        except PersonabotError as error:
            log.warning("remote voices not taken, trying again", error=str(error))

    def _follow(self, voices: dict[str, Voice]) -> None:
        """Give what is new there, and take away what came from there and is there no more."""
        for here in read_voices(self._registry).voices:
            if here.by == BY and key_of(here.persona) not in voices:
                withdraw(self._registry, here.persona)
        self._voices = {key: voice for key, voice in self._voices.items() if key in voices}
        for key, voice in voices.items():
            try:
                if self._voices.get(key) != voice:
                    give(self._registry, voice.persona, voice.checkpoint, by=BY)
                    self._voices[key] = voice
                    log.info("followed the remote", persona=voice.persona, checkpoint=voice.checkpoint)
            except PersonabotError as error:
                log.warning("remote voice not taken, trying again", persona=voice.persona, error=str(error))

    def __enter__(self) -> Self:
        self.look()  # before the first model is loaded
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            self.look()


def currents(url: str) -> dict[str, str]:
    """Return the current version of every name at `url`."""
    with _filesystem(url) as (files, root):
        pointers = files.glob(f"{root}/*/{POINTER_FILE}")
        return {path.split("/")[-2]: _remote_version(files, path.rpartition("/")[0], "") for path in pointers}


def voices_at(url: str) -> dict[str, Voice]:
    """Return the voices at `url` by the personas' keys."""
    with _filesystem(url) as (files, root):
        return {key_of(voice.persona): voice for voice in _remote_voices(files, root).voices}


def _push_voices(files: Any, root: str, name: str, here: Voices) -> None:
    """Let exactly the personas that speak with `name` here do so there; those of other names stay as they are."""
    own = tuple(voice for voice in here.voices if voice.checkpoint == name)
    keys = {key_of(voice.persona) for voice in own}
    there = _remote_voices(files, root)
    others = (voice for voice in there.voices if voice.checkpoint != name and key_of(voice.persona) not in keys)
    voices = Voices(voices=(*others, *own))
    if voices != there:
        files.pipe_file(f"{root}/{VOICES_FILE}", voices.model_dump_json().encode())


def _remote_voices(files: Any, root: str) -> Voices:
    path = f"{root}/{VOICES_FILE}"
    return Voices.model_validate_json(files.cat_file(path)) if files.exists(path) else Voices()


def _remote_version(files: Any, folder: str, wanted: str) -> str:
    if not wanted:
        if not files.exists(f"{folder}/{POINTER_FILE}"):
            raise RegistryError(f"{folder} has no current version. Push one, or name a version.")
        pointer = Pointer.model_validate_json(files.cat_file(f"{folder}/{POINTER_FILE}"))
        return pointer.promotions[-1].version
    names: list[str] = (
        [path.rpartition("/")[2] for path in files.ls(folder, detail=False)] if files.exists(folder) else []
    )
    complete = [name for name in names if files.exists(f"{folder}/{name}/{LINEAGE_FILE}")]
    matches = [name for name in complete if name == wanted or re.match(rf"0*{re.escape(wanted)}-", name)]
    if len(matches) != 1:
        raise RegistryError(f"{folder} has no version {wanted!r}. There are: {', '.join(complete) or 'none'}.")
    return matches[0]


@contextlib.contextmanager
def _filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the store and the path in it; whatever a store raises says which store it was, without its password."""
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(url)
        yield files, str(root).rstrip("/")
    except (RegistryError, CheckpointError):
        raise
    except Exception as error:  # every store has errors of its own
        shown = re.sub(r"//[^@/]*@", "//***@", url)
        raise RegistryError(f"{shown} can't be used: {type(error).__name__}: {error}") from error
