"""Which models the workers have loaded, and what failed to load: written by workers, read by whoever shows it.

Who had a model served is written by whoever did, so that they can be told.

models:{worker}    hash: a model's key → JSON (`LoadedState`); gone when the worker no longer renews it
model_errors       stream: worker, reference, reason; the last 50
model_orders       hash: a checkpoint's name → the conversation in which somebody last had it served
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, cast

import redis

from personas.conversation import Conversation

ERRORS: Final = "model_errors"
ORDERS: Final = "model_orders"
MAX_ERRORS: Final = 50
LIFE_S: Final = 60
PREFIX: Final = "models:"


@dataclass(frozen=True, slots=True)
class LoadedState:
    """One model in a worker's memory. `serves`: what it answers for, "" being everybody without a checkpoint of own.

    `reference` is NAME@VERSION, or empty for what is not in the registry; `since` in Unix seconds.
    """

    name: str
    digest: str
    reference: str
    serves: tuple[str, ...]
    since: float
    num_bytes: int
    reason: str = ""

    @property
    def is_default(self) -> bool:
        """Whether it answers for every persona that has no checkpoint of its own."""
        return "" in self.serves


@dataclass(frozen=True, slots=True)
class LoadError:
    """Why a worker goes on with what it had: `reference` is what should have been loaded, "" for the default."""

    worker: str
    reference: str
    reason: str
    at: float


class Board(Protocol):
    """Where a worker says what it has loaded."""

    def show(self, models: Sequence[LoadedState]) -> None:
        """Replace what is known of this worker; to be renewed within `LIFE_S`."""

    def failed(self, reference: str, reason: str) -> None:
        """Add to what administrators are told."""


class NoBoard:
    """For who has nobody to tell."""

    def show(self, models: Sequence[LoadedState]) -> None:
        """Do nothing."""

    def failed(self, reference: str, reason: str) -> None:
        """Do nothing."""


class RedisBoard:
    """Writes what one worker has loaded."""

    def __init__(self, client: redis.Redis, worker: str) -> None:
        self._client = client
        self._worker = worker

    def show(self, models: Sequence[LoadedState]) -> None:
        """See `Board`."""
        key = PREFIX + self._worker
        with self._client.pipeline() as pipe:
            pipe.delete(key)
            if models:
                fields: dict[Any, Any] = {f"{each.name}@{each.digest}": json.dumps(asdict(each)) for each in models}
                pipe.hset(key, mapping=fields)
                pipe.expire(key, LIFE_S)
            pipe.execute()

    def failed(self, reference: str, reason: str) -> None:
        """See `Board`."""
        fields: dict[Any, Any] = {"worker": self._worker, "reference": reference, "reason": reason}
        self._client.xadd(ERRORS, fields | {"at": time.time()}, maxlen=MAX_ERRORS, approximate=False)


def loaded_models(client: redis.Redis) -> dict[str, list[LoadedState]]:
    """Return what every living worker has loaded, by the worker's name."""
    workers = sorted(client.scan_iter(PREFIX + "*"))
    hashes = (cast("dict[str, str]", client.hgetall(key)) for key in workers)
    return {
        key.removeprefix(PREFIX): sorted(map(_state, fields.values()), key=lambda model: model.since)
        for key, fields in zip(workers, hashes, strict=True)
    }


def load_errors(client: redis.Redis, number: int = 5) -> list[LoadError]:
    """Return what failed to load, newest first."""
    entries = cast("list[tuple[str, dict[str, str]]]", client.xrevrange(ERRORS, count=number))
    return [LoadError(f["worker"], f["reference"], f["reason"], float(f["at"])) for _, f in entries]


def set_order(client: redis.Redis, name: str, conversation: Conversation) -> None:
    """Remember that somebody had the checkpoint's name served, and where: that is where its failures are told."""
    client.hset(ORDERS, name, str(conversation))


def ordered_in(client: redis.Redis, name: str) -> Conversation | None:
    """Return where somebody last had the checkpoint's name served; None for nowhere."""
    said = cast("str | None", client.hget(ORDERS, name))
    return Conversation.parse(said) if said else None


def _state(text: str) -> LoadedState:
    data = json.loads(text)
    return LoadedState(**{**data, "serves": tuple(data["serves"])})
