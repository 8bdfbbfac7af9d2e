"""A model trained in any layout is served in it: replies are what `transformers` generates from the same prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from personas.conversation import Role, Turn
from personas.layout import LAYOUTS
from personas.persona import GenerationSettings, Persona
from tests.helpers.layouts import tokenizer_json
from tests.helpers.tiny_model import tiny_checkpoint
from worker.engine.engine import Engine
from worker.engine.request import Request, SamplingParams
from worker.engine.runner import RaggedRunner, SequentialRunner
from worker.loading import LoadedModel, load_model
from worker.respond import Responder

ADA = Persona(name="Ada", facts=("My name is Ada.", "I keep bees."))
TALK = (Turn(Role.BOT, "hi!"), Turn(Role.USER, "who are you?"))
NAMES = ["persona", "convai", "dialogpt", "corpus"]


def served(folder: Path, name: str) -> LoadedModel:
    """Load a random GPT-2 whose layout is `name`."""
    tiny_checkpoint(folder)
    LAYOUTS[name](tokenizer_json(), max_tokens=256).write(folder)
    return load_model(str(folder), device="cpu", dtype="float32")


def reference(loaded: LoadedModel, prompt: list[int], number: int) -> list[int]:
    """Generate greedily with whole forward passes of the model itself."""
    model = GPT2LMHeadModel.from_pretrained(loaded.checkpoint.folder if loaded.checkpoint else "")
    ids = list(prompt)
    for _ in range(number):
        types = loaded.layout.token_types(ids)
        types_given = None if types is None else torch.tensor([types])
        scores = model(torch.tensor([ids]), token_type_ids=types_given).logits[0, -1]
        scores[sorted(loaded.banned_ids | loaded.layout.stop_ids)] = float("-inf")
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_is_what_the_model_itself_gives_after_the_layouts_prompt(tmp_path: Path, name: str) -> None:
    loaded = served(tmp_path, name)
    prompts = [loaded.layout.prompt(ADA.facts, TALK[:count], max_tokens=256, reserve=20).ids for count in (1, 2)]
    params = SamplingParams(do_sample=False, max_new_tokens=6, min_new_tokens=6)
    expected = [reference(loaded, prompt, 6) for prompt in prompts]
    with Engine.for_model(loaded) as engine:
        futures = [engine.submit(Request(prompt_ids=tuple(prompt), params=params)) for prompt in prompts]
        assert [list(future.result(60).ids) for future in futures] == expected


@pytest.mark.parametrize("kind", [RaggedRunner, SequentialRunner])
def test_types_reach_the_model_by_either_runner(tmp_path: Path, kind: type) -> None:
    loaded = served(tmp_path, "convai")
    prompt = loaded.layout.prompt(ADA.facts, TALK, max_tokens=256, reserve=20).ids
    expected = reference(loaded, prompt, 5)
    engine = Engine.for_model(loaded)
    assert isinstance(engine._runner, RaggedRunner)
    if kind is SequentialRunner:
        engine._runner = SequentialRunner(loaded.model, loaded.layout.token_types)
    params = SamplingParams(do_sample=False, max_new_tokens=5, min_new_tokens=5)
    with engine:
        assert list(engine.submit(Request(prompt_ids=tuple(prompt), params=params)).result(60).ids) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_persona_speaks_in_every_layout(tmp_path: Path, name: str) -> None:
    loaded = served(tmp_path, name)
    with Engine.for_model(loaded) as engine:
        reply = Responder(loaded, engine).respond(ADA, TALK, GenerationSettings(seed=3, max_new_tokens=12))
    assert reply.text
    assert "<speaker" not in reply.text
