"""The endurance benchmark, in small: its load ends every request one way, and it sees what it is to see."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from benchmarks.endurance import LIMITS, endure
from benchmarks.load import DEFECTS, NUM_SLOTS, Pace
from benchmarks.witness import Sample, Witness, ending, growth
from personas.persona import GenerationSettings
from tests.helpers.tiny_model import tiny_checkpoint
from worker import models, respond
from worker.engine.cache import KVCache
from worker.engine.errors import EngineBusy, GenerationFailed
from worker.engine.request import Completion, Request, SamplingParams
from worker.engine.request import Sequence as Running
from worker.engine.scheduler import Scheduler
from worker.loading import LoadedModel, load_model

WAIT_S = 60
SEARCH = Request(prompt_ids=(5, 6), params=SamplingParams(num_beams=3, max_new_tokens=1))


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_checkpoint(folder / f"tiny{seed}", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def loaded(tinies: list[Path]) -> LoadedModel:
    return load_model(str(tinies[0]), device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "POLL_S", 0.02)


def load_of(tinies: list[Path], *, num_rounds: int = 1, **changes: Any) -> dict[str, Any]:
    pace = replace(Pace(num_bursts=12, pause_s=0.005, swaps_per_burst=0.2, idle_s=0.0), **changes)
    with capture_logs():
        return endure(tinies, pace, num_rounds=num_rounds, seed=45, tell=lambda _: None)


def test_under_random_load_with_swaps_every_request_ends_one_way_and_nothing_is_held(
    tinies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "max_saved_bytes", 1 << 16)  # less than what is saved, whoever was faster
    result = load_of(tinies, num_rounds=2)
    endings = result["endings"]
    assert result["failures"] == []
    assert sum(endings.values()) == result["requests"] > 60
    assert {"length", "cancelled", "EngineBusy", "DeadlinePassed", "RequestRefused"} <= set(endings)
    assert not set(DEFECTS) & set(endings)
    assert result["swaps"] > 2
    assert result["engines"] > 2
    assert result["prefixes_evicted"] > 0


def test_a_reply_that_changes_by_what_was_saved_is_seen(tinies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    save = KVCache.save
    monkeypatch.setattr(KVCache, "save", lambda self, row, number: [part * 2 for part in save(self, row, number)])
    result = load_of(tinies[:1])
    assert "the greedy reply changed" in result["failures"]


def test_a_probe_that_is_refused_is_not_called_a_changed_reply(
    tinies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.load.PROBE", GenerationSettings(num_beams=NUM_SLOTS + 1))
    [failure] = load_of(tinies[:1], num_bursts=0)["failures"]
    assert failure.startswith("the probe was refused: ")


def test_a_probe_whose_time_is_over_is_not_compared(tinies: list[Path]) -> None:
    failures = load_of(tinies[:1], num_bursts=0, patience_s=-1)["failures"]
    assert not any("probe" in failure or "greedy" in failure for failure in failures)


def test_every_request_is_seen_and_how_it_ended(loaded: LoadedModel) -> None:
    witness = Witness(seed=1)
    with witness.watching(max_num_waiting=1), respond.Engine.for_model(loaded, max_num_seqs=3) as engine:
        engine.submit(SEARCH).result(WAIT_S)
        with pytest.raises(EngineBusy):
            engine.submit_together([SEARCH, SEARCH])
    assert (witness.num_asked, witness.endings, witness.num_slots_in_use) == (3, {"length": 1, "EngineBusy": 2}, 0)
    assert witness.is_idle


def test_a_slot_that_is_not_given_back_is_seen(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Scheduler.finish

    def forgetful(self: Scheduler, sequence: Running) -> None:
        sequence.reserved_slots = []
        finish(self, sequence)

    monkeypatch.setattr(Scheduler, "finish", forgetful)
    witness = Witness(seed=1)
    with witness.watching(), respond.Engine.for_model(loaded, max_num_seqs=3) as engine:
        engine.submit(SEARCH).result(WAIT_S)
    assert (witness.num_slots_in_use, witness.num_open, witness.is_idle) == (2, 0, False)


def test_an_ending_has_the_name_that_the_table_in_the_docs_gives_it() -> None:
    cancelled, failed = Future[Completion](), Future[Completion]()
    cancelled.cancel()
    failed.set_exception(GenerationFailed("no"))
    assert [ending(cancelled), ending(failed)] == ["cancelled", "GenerationFailed"]


def samples(*megabytes: float) -> list[Sample]:
    return [Sample(60.0 * minute, each, each, 0, 1, 1) for minute, each in enumerate(megabytes)]


def test_figures_are_told_where_the_time_is_over_before_the_first_round(tinies: list[Path]) -> None:
    result = load_of(tinies[:1], num_rounds=0)
    assert result["messages"] == 0
    [before] = result["samples"]
    assert result["memory"]["num_blocks"]["median"] == before["num_blocks"]


def test_memory_that_grows_after_the_warm_up_is_told_with_its_slope() -> None:
    assert growth(samples(*[500 + minute for minute in range(60)]), "resident_mb") == {
        "second_quarter": 522, "last_quarter": 552, "slope_per_hour": 60, "lowest": 515, "highest": 559,
        "last_quarter_is": "more than 2% higher",
    }  # fmt: skip


def test_what_memory_grows_by_while_it_warms_up_and_that_it_jumps_to_and_fro_does_not_count() -> None:
    warming = [100.0 * minute for minute in range(5)]
    assert growth(samples(*warming, *[500, 505, 495] * 5), "resident_mb")["last_quarter_is"] == "at most 2% higher"
    assert growth(samples(1, 2), "resident_mb")["last_quarter_is"] == "of too few samples"
