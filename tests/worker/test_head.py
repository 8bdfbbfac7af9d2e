"""The next-utterance head of a checkpoint: what the engine says of it, and which of several replies it chooses."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.tiny_families import FAMILIES, prompts
from tests.helpers.tiny_model import tiny_checkpoint
from tests.worker.engine.test_runner import tiny_bloom, tiny_qwen3
from worker.engine.engine import Engine
from worker.engine.errors import RequestRefused
from worker.engine.request import Completion, Request, SamplingParams
from worker.generate import Task
from worker.head import PREFIX, HeadRanker
from worker.loading import LoadedModel, load_model
from worker.respond import Responder, start_responder
from worker.streaming import TextStream

WAIT_S = 60
ADA = Persona(name="Ada", facts=("My name is Ada.", "I keep bees."))
HELLO = (Turn(Role.USER, "hello, who are you?"),)
SETTINGS = GenerationSettings(seed=5, candidates=4, max_new_tokens=6)


def tiny_double_head(folder: Path, *, scale: float) -> Path:
    """A tiny checkpoint with a random head, multiplied by `scale`."""
    weights = load_file(tiny_checkpoint(folder) / "model.safetensors")
    head = torch.randn(1, 64, generator=torch.Generator().manual_seed(3)) * scale
    weights |= {f"{PREFIX}summary.weight": head, f"{PREFIX}summary.bias": torch.tensor([0.5])}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def own_fit(loaded: LoadedModel, ids: list[int]) -> float:
    """What the head makes of the state that `transformers` computes at the end of `ids`."""
    assert loaded.head is not None
    with torch.no_grad():
        states = loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        return float(loaded.head(states[0, -1]))


@pytest.mark.parametrize("make", [*FAMILIES.values(), tiny_qwen3, tiny_bloom], ids=lambda make: make.__name__)
def test_every_runner_scores_the_state_at_the_end(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(1)
    head = torch.nn.Linear(64, 1).requires_grad_(False)
    given = prompts(9, 30, 4)
    with torch.no_grad():
        states = [make()(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1] for ids in given]
    with Engine(make(), head=head, max_num_seqs=4, max_step_tokens=16) as engine:
        beside = engine.submit(Request(prompt_ids=given[0], params=SamplingParams(max_new_tokens=5)))
        futures = [engine.submit(Request(prompt_ids=ids, wants_fit=True)) for ids in given]
        completions = [future.result(WAIT_S) for future in futures]
        assert len(beside.result(WAIT_S).ids) == 5
    assert [c.fit for c in completions] == pytest.approx([float(head(s[0, -1])) for s in states], abs=1e-4)
    assert {c.ids for c in completions} == {()}


def test_without_a_head_a_fit_is_refused() -> None:
    with Engine(FAMILIES["gpt2"]()) as engine, pytest.raises(RequestRefused, match="no next-utterance head"):
        engine.submit(Request(prompt_ids=(1, 2), wants_fit=True))


@pytest.mark.parametrize("scale", [100.0, -100.0], ids=["head", "its opposite"])
def test_the_reply_said_is_the_one_that_the_head_prefers(tmp_path: Path, scale: float) -> None:
    folder = tiny_double_head(tmp_path / "double", scale=scale)
    reference = load_model(str(folder), device="cpu", dtype="float32")
    layout = reference.layout
    prompt = layout.prompt(ADA.facts, HELLO, max_tokens=reference.window, reserve=6).ids
    task = Task.of(SETTINGS, layout, ends=None, group=("", ""), stream=None)
    seeds = [task.request((1,), place, TextStream(layout.decoded)).params.seed for place in range(4)]
    with start_responder(Settings(model=str(folder), dtype="float32", max_num_seqs=4)) as responder:
        single = SETTINGS.model_copy(update={"candidates": 1})
        replies = [responder.respond(ADA, HELLO, single.model_copy(update={"seed": seed})).text for seed in seeds]
        fits = {text: own_fit(reference, [*prompt, *layout.reply_ids(text)]) for text in replies}
        assert responder.respond(ADA, HELLO, SETTINGS).text == max(replies, key=fits.__getitem__)
    assert len(set(replies)) == 4


def test_a_checkpoint_without_a_head_is_ranked_without_it(tmp_path: Path) -> None:
    loaded = load_model(str(tiny_checkpoint(tmp_path / "tiny")), device="cpu", dtype="float32")
    assert loaded.head is None
    with Engine.for_model(loaded) as engine:
        assert Responder(loaded, engine).respond(ADA, HELLO, SETTINGS).text


def test_no_reply_is_better_where_the_engine_has_stopped() -> None:
    with Engine(FAMILIES["gpt2"](), head=torch.nn.Linear(64, 1)) as engine:
        pass
    assert HeadRanker(engine).scores([(1, 2), (3,)]) == [0.0, 0.0]


def test_a_sequence_longer_than_the_window_is_scored_where_the_window_ends() -> None:
    head = torch.nn.Linear(64, 1).requires_grad_(False)
    ids = [*range(100)] * 3
    with Engine(FAMILIES["gpt2"](), head=head, window=60) as engine:
        assert HeadRanker(engine).scores([ids]) == pytest.approx(HeadRanker(engine).scores([ids[:59]]))


def test_ranking_ends_by_the_replys_deadline_and_takes_turns_as_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_double_head(tmp_path / "double", scale=1.0)
    with start_responder(Settings(model=str(folder), dtype="float32", max_num_seqs=4)) as responder:
        asked: list[Request] = []
        submit = responder.engine.submit

        def noted(request: Request) -> Future[Completion]:
            asked.append(request)
            return submit(request)

        monkeypatch.setattr(responder.engine, "submit", noted)
        responder.respond(ADA, HELLO, SETTINGS, time.time() + 8, group=("guild", "room"))
        assert {request.group for request in asked} == {("guild", "room")}
        assert len(asked) == 4
        assert all(request.wants_fit and (request.timeout_s or 99) < 8 for request in asked)
        assert HeadRanker(responder.engine).scores([(1, 2), (3,)], ends=time.monotonic() - 1) == [0.0, 0.0]
        assert 0.0 not in HeadRanker(responder.engine).scores([(1, 2), (3,)], ends=time.monotonic() + WAIT_S)
