"""The pool of models: swaps under load, personas with their own checkpoints, a memory budget, and what won't load."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from personas.conversation import Role, Turn
from personas.errors import PersonabotError
from personas.leases import held_versions
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry, Version
from personas.settings import Settings
from personas.voices import give, roll_back, withdraw
from tests.helpers.tiny_model import tiny_checkpoint
from tests.helpers.worker_process import PATIENCE_S, wait_until
from worker import models
from worker.loading import Found
from worker.memory import model_bytes
from worker.models import ModelPool
from worker.queue.loaded import LoadedState
from worker.respond import Responder

GREEDY = GenerationSettings(do_sample=False, max_new_tokens=12)
ADA = Persona(name="Ada", facts=("My name is Ada.",))
BOB = Persona(name="Bob", facts=("My name is Bob.",))
HELLO = [Turn(Role.USER, "hello there, how are you?")]


@dataclass
class Seen:
    """A board that remembers."""

    models: list[LoadedState] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def show(self, models: Sequence[LoadedState]) -> None:
        self.models = list(models)

    def failed(self, reference: str, reason: str) -> None:
        self.failures.append((reference, reason))


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


def says(pool: ModelPool, persona: Persona = ADA) -> tuple[str, str]:
    reply = pool.respond(persona, HELLO, GREEDY)
    return reply.model, reply.text


def answering(pool: ModelPool, version: Version, persona: Persona = ADA) -> Callable[[], bool]:
    return lambda: says(pool, persona)[0] == f"{version.name}@{version.digest}"


def test_a_promotion_and_a_rollback_take_over_and_give_the_same_replies_again(
    pool: ModelPool, registry: Registry
) -> None:
    one, two = registry.versions("ada")
    first = says(pool)
    assert first[0] == f"ada@{one.digest}"
    registry.promote(two.reference)
    wait_until(answering(pool, two), "the second version answers")
    second = says(pool)
    assert second[1] != first[1]
    registry.rollback("ada")
    wait_until(answering(pool, one), "the first version answers")
    assert says(pool) == first


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


def test_a_checkpoint_that_is_not_there_is_reported_and_the_default_speaks(
    pool: ModelPool, registry: Registry, board: Seen
) -> None:
    assert says(pool, ADA.model_copy(update={"checkpoint": "nobody/there"}))[0].startswith("ada@")
    [(reference, reason)] = board.failures
    assert reference == "nobody/there"
    assert "could not be fetched" in reason


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


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


def test_what_is_loaded_is_held_against_pruning_until_the_pool_stops(
    settings: Settings, registry: Registry, board: Seen
) -> None:
    one, two = registry.versions("ada")
    with ModelPool(settings, board=board) as pool:
        registry.promote(two.reference)
        wait_until(answering(pool, two), "the second version answers")
        assert set(held_versions(registry.folder)) == {one.reference, two.reference}
        assert [(state.digest, state.is_default) for state in board.models] == [(one.digest, False), (two.digest, True)]
    assert held_versions(registry.folder) == {}
    assert board.models == []


def test_another_name_may_be_chosen_while_the_pool_runs(pool: ModelPool, registry: Registry) -> None:
    registry.choose("eve")
    wait_until(answering(pool, registry.version("eve")), "eve answers")


def test_a_damaged_choice_costs_nobody_a_reply(pool: ModelPool, registry: Registry, board: Seen) -> None:
    (registry.folder / "chosen.json").write_text("{")
    wait_until(lambda: board.failures, "the failure is published")
    assert "chosen.json" in board.failures[0][1]
    assert says(pool, ADA.model_copy(update={"checkpoint": "eve"}))[0].startswith("eve@")
    (registry.folder / "chosen.json").unlink()
    assert answering(pool, registry.version("ada"))()


def test_who_is_given_a_voice_speaks_with_it_and_nobody_else_does(pool: ModelPool, registry: Registry) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    give(registry, "BOB", "eve")
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")
    assert answering(pool, default)()
    assert {state.name: state.serves for state in pool.loaded()} == {"ada": ("",), "eve": ("eve",)}
    assert answering(pool, default, BOB.model_copy(update={"checkpoint": "ada"}))(), "the file comes first"


def test_a_voice_follows_promotions_and_rollbacks_down_to_the_default(
    pool: ModelPool, registry: Registry, tinies: list[Path]
) -> None:
    default, one = registry.version("ada"), registry.version("eve")
    give(registry, "Bob", "eve")
    two = registry.promote(registry.add(tinies[1], "eve").reference)
    wait_until(answering(pool, two, BOB), "the second version of the voice speaks")
    roll_back(registry, "eve")
    wait_until(answering(pool, one, BOB), "the first version of the voice speaks")
    roll_back(registry, "eve")
    wait_until(answering(pool, default, BOB), "the default speaks")
    assert answering(pool, default)()


def test_until_a_voice_is_loaded_its_persona_speaks_as_before(
    pool: ModelPool, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, is_loading, may_load = registry.version("eve"), threading.Event(), threading.Event()
    start = models.start_responder

    def start_in_time(*arguments: Any, **options: Any) -> Responder:
        is_loading.set()
        may_load.wait(PATIENCE_S)
        return start(*arguments, **options)

    monkeypatch.setattr(models, "start_responder", start_in_time)
    give(registry, "Bob", "eve")
    assert is_loading.wait(PATIENCE_S)
    assert answering(pool, registry.version("ada"), BOB)()
    may_load.set()
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")


def test_a_voice_that_cannot_be_loaded_leaves_the_default_speaking_and_says_why(
    pool: ModelPool, registry: Registry, board: Seen
) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    truncated(voice.folder)
    give(registry, "Bob", "eve")
    wait_until(lambda: board.failures, "the failure is published")
    assert board.failures[0][0] == "eve"
    assert "damaged" in board.failures[0][1]
    assert answering(pool, default, BOB)()


def test_a_voice_that_was_taken_away_is_let_go(settings: Settings, registry: Registry, board: Seen) -> None:
    default, voice = registry.version("ada"), registry.version("eve")
    give(registry, "Bob", "eve")
    with ModelPool(settings, board=board, idle_s=0) as pool:
        assert [state.name for state in pool.loaded()] == ["ada"], "a voice is loaded when somebody talks to it"
        assert answering(pool, voice, BOB)()
        withdraw(registry, "Bob")
        wait_until(answering(pool, default, BOB), "Bob speaks with the default")
        wait_until(lambda: [state.name for state in pool.loaded()] == ["ada"], "the voice is gone")


def test_a_damaged_list_of_voices_costs_nobody_a_reply(pool: ModelPool, registry: Registry, board: Seen) -> None:
    voice = registry.version("eve")
    give(registry, "Bob", "eve")
    wait_until(answering(pool, voice, BOB), "Bob speaks with his voice")
    (registry.folder / "voices.json").write_text("{")
    wait_until(lambda: board.failures, "the failure is published")
    assert board.failures[0][0] == "voices.json"
    assert answering(pool, voice, BOB)()
    (registry.folder / "voices.json").unlink()
    wait_until(answering(pool, registry.version("ada"), BOB), "the default speaks")
