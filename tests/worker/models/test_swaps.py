"""The pool of models: swaps under load, personas with their own checkpoints, and what is held meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from personas.leases import held_versions
from personas.persona import GenerationSettings
from personas.registry import Registry
from personas.settings import Settings
from tests.helpers.pool import ADA, GREEDY, HELLO, SEEDED, Seen, answering, says
from tests.helpers.worker_process import PATIENCE_S, wait_until
from worker.models import ModelPool


@pytest.mark.parametrize("way", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_promotion_and_a_rollback_take_over_and_give_the_same_replies_again(
    pool: ModelPool, registry: Registry, way: GenerationSettings
) -> None:
    one, two = registry.versions("ada")
    first = says(pool, ADA, way)
    assert first[0] == f"ada@{one.digest}"
    registry.promote(two.reference)
    wait_until(answering(pool, two), "the second version answers")
    second = says(pool, ADA, way)
    assert second[1] != first[1]
    registry.rollback("ada")
    wait_until(answering(pool, one), "the first version answers")
    assert says(pool, ADA, way) == first


def test_no_request_is_dropped_or_answered_by_half_of_each_model_while_versions_change(
    pool: ModelPool, registry: Registry
) -> None:
    expected: dict[str, str] = {}
    for version in registry.versions("ada"):
        registry.promote(version.reference)
        wait_until(answering(pool, version), f"{version.reference} answers")
        model, expected[model] = says(pool)
    is_over = threading.Event()

    def talk() -> list[tuple[str, str]]:
        said = []
        while not is_over.is_set():
            said.append(says(pool))
        return said

    with ThreadPoolExecutor(6) as executor:
        talks = [executor.submit(talk) for _ in range(6)]
        try:
            for _ in range(3):
                for version in registry.versions("ada"):
                    registry.promote(version.reference)
                    wait_until(answering(pool, version), f"{version.reference} answers under load")
        finally:
            is_over.set()
        said = [pair for talk in talks for pair in talk.result()]
    assert {model for model, _ in said} == set(expected)
    assert all(expected[model] == text for model, text in said)


def test_a_request_that_began_on_the_old_model_keeps_it_until_it_is_done(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    one, two = registry.versions("ada")
    has_begun, may_end = threading.Event(), threading.Event()

    def listen(_: str) -> None:
        has_begun.set()
        may_end.wait(PATIENCE_S)

    with ModelPool(settings, board=board, idle_s=0) as pool, ThreadPoolExecutor(1) as executor:
        running = executor.submit(pool.respond, ADA, HELLO, GREEDY, stream=listen)
        assert has_begun.wait(PATIENCE_S)
        registry.promote(two.reference)
        wait_until(answering(pool, two), "the second version answers")
        assert [state.digest for state in pool.loaded()] == [one.digest, two.digest]
        may_end.set()
        assert running.result().model == f"ada@{one.digest}"
        wait_until(lambda: [state.digest for state in pool.loaded()] == [two.digest], "the first version is gone")


def test_a_persona_speaks_by_a_checkpoint_of_its_own(pool: ModelPool, registry: Registry, tinies: list[Path]) -> None:
    voice = ADA.model_copy(update={"checkpoint": "eve"})
    folder = ADA.model_copy(update={"checkpoint": str(tinies[1])})
    assert says(pool, voice)[0] == f"eve@{registry.version('eve').digest}"
    assert says(pool, folder)[0].startswith("tiny1@")
    assert says(pool)[0] == f"ada@{registry.version('ada').digest}"
    serves = {state.name: state.serves for state in pool.loaded()}
    assert serves == {"ada": ("",), "eve": ("eve",), "tiny1": (str(tinies[1]),)}


def test_two_names_of_one_version_share_one_model(pool: ModelPool, registry: Registry) -> None:
    says(pool, ADA.model_copy(update={"checkpoint": "ada@1"}))
    says(pool, ADA.model_copy(update={"checkpoint": "ada"}))
    [state] = pool.loaded()
    assert state.serves == ("", "ada", "ada@1")


def test_what_is_loaded_is_held_against_pruning_until_the_pool_stops(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    one, two = registry.versions("ada")
    with ModelPool(settings, board=board) as pool:
        registry.promote(two.reference)
        wait_until(answering(pool, two), "the second version answers")
        assert set(held_versions(registry.folder)) == {one.reference, two.reference}
        shown = [(one.digest, False), (two.digest, True)]
        wait_until(
            lambda: [(state.digest, state.is_default) for state in board.models] == shown, "the board shows both"
        )
    assert held_versions(registry.folder) == {}
    assert board.models == []


def test_another_name_may_be_chosen_while_the_pool_runs(pool: ModelPool, registry: Registry) -> None:
    registry.choose("eve")
    wait_until(answering(pool, registry.version("eve")), "eve answers")
