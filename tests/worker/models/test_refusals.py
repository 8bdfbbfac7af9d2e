"""What the pool can't load: damaged versions and choices, and models that are not there or have no room."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from personas.errors import PersonabotError
from personas.registry import Registry
from personas.settings import Settings
from tests.helpers.pool import ADA, Seen, answering, says, truncated
from tests.helpers.worker_process import wait_until
from worker.loading import Found
from worker.memory import model_bytes
from worker.models import ModelPool


def test_a_checkpoint_that_is_not_there_is_reported_and_the_default_speaks(
    pool: ModelPool, registry: Registry, board: Seen
) -> None:
    assert says(pool, ADA.model_copy(update={"checkpoint": "nobody/there"}))[0].startswith("ada@")
    [(reference, reason)] = board.failures
    assert reference == "nobody/there"
    assert "could not be fetched" in reason


def of_another_layout(folder: Path) -> None:
    layout = json.loads((folder / "layout.json").read_text())
    (folder / "layout.json").write_text(json.dumps({**layout, "version": 99}))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


HARMS = [truncated, of_another_layout, without_tokenizer]


@pytest.mark.parametrize("harm", HARMS)
def test_a_version_that_was_harmed_never_serves(
    pool: ModelPool, registry: Registry, board: Seen, harm: Callable[[Path], None]
) -> None:
    one, two = registry.versions("ada")
    pointer = registry.folder / "ada" / "current.json"
    harm(two.folder)
    with pytest.raises(PersonabotError):
        registry.promote(two.reference)
    pointer.write_text(pointer.read_text().replace(one.version, two.version))  # by hand, past every check
    wait_until(lambda: board.failures, "the failure is published")
    assert board.failures[0][0] == ""
    assert "damaged" in board.failures[0][1]
    assert answering(pool, one)()


def test_a_version_whose_layout_is_unknown_never_serves_even_if_its_files_are_whole(
    pool: ModelPool, registry: Registry, board: Seen, tinies: list[Path], tmp_path: Path
) -> None:
    one = registry.version("ada")
    foreign = Path(shutil.copytree(tinies[1], tmp_path / "foreign"))
    of_another_layout(foreign)
    registry.promote(registry.add(foreign, "ada").reference)
    wait_until(lambda: board.failures, "the failure is published")
    assert "version 99 is not known" in board.failures[0][1]
    assert answering(pool, one)()
    registry.rollback("ada")
    assert answering(pool, one)()


def test_a_worker_that_starts_on_a_harmed_version_serves_the_one_before(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    one, two = registry.versions("ada")
    registry.promote(two.reference)
    truncated(two.folder)
    with ModelPool(settings, board=board) as pool:
        assert answering(pool, one)()
    assert "damaged" in board.failures[0][1]


def test_a_worker_without_any_model_does_not_start(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(PersonabotError, match="no such folder"):
        ModelPool(settings.model_copy(update={"model": str(tmp_path / "nothing")})).start()


def test_the_least_recently_used_model_makes_room(
    settings: Settings, registry: Registry, tinies: list[Path], board: Seen
) -> None:
    size = model_bytes(Found("tiny", tinies[0]), device="cpu", dtype="float32")
    assert size > 100_000
    voices = [ADA.model_copy(update={"checkpoint": str(folder)}) for folder in tinies[1:]]
    with ModelPool(settings, board=board, budget=2 * size) as pool:
        says(pool)
        for voice in (voices[0], voices[1], voices[0]):
            assert says(pool, voice)[0].startswith(Path(str(voice.checkpoint)).name)
            assert len(pool.loaded()) == 2
        assert {state.name for state in pool.loaded()} == {"ada", "tiny1"}
    assert board.failures == []


def test_a_model_that_does_not_fit_is_reported_with_the_figures(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    with ModelPool(settings, board=board, budget=1) as pool:
        assert says(pool, ADA.model_copy(update={"checkpoint": "eve"}))[0].startswith("ada@")
    [(reference, reason)] = board.failures
    assert reference == "eve"
    assert "model_memory_gb" in reason


def test_a_damaged_choice_costs_nobody_a_reply(pool: ModelPool, registry: Registry, board: Seen) -> None:
    (registry.folder / "chosen.json").write_text("{")
    wait_until(lambda: board.failures, "the failure is published")
    assert "chosen.json" in board.failures[0][1]
    assert says(pool, ADA.model_copy(update={"checkpoint": "eve"}))[0].startswith("eve@")
    (registry.folder / "chosen.json").unlink()
    assert answering(pool, registry.version("ada"))()
