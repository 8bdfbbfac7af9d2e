"""A pool with two versions of `ada`, which everybody speaks with, and one of `eve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from personas.registry import Registry
from personas.settings import Settings
from tests.helpers.pool import Seen
from tests.helpers.tiny_model import tiny_checkpoint
from worker import models
from worker.models import ModelPool


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "POLL_S", 0.02)


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that differ in their weights."""
    folder = tmp_path_factory.mktemp("models")
    return [tiny_checkpoint(folder / f"tiny{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, model="ada", device="cpu", dtype="float32", max_num_seqs=4, num_threads=1)


@pytest.fixture
def registry(settings: Settings, tinies: list[Path]) -> Registry:
    """Two versions of `ada`, the first of which is current, and one of `eve`."""
    registry = Registry.of(settings)
    registry.promote(registry.add(tinies[0], "ada").reference)
    registry.add(tinies[1], "ada")
    registry.promote(registry.add(tinies[2], "eve").reference)
    return registry


@pytest.fixture
def board() -> Seen:
    return Seen()


@pytest.fixture
def pool(settings: Settings, registry: Registry, board: Seen) -> Iterator[ModelPool]:
    with ModelPool(settings, board=board) as pool:
        yield pool
