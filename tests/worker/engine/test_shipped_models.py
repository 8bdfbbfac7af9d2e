"""The shipped models themselves: what our engine says under greedy decoding is what `generate` says."""

from __future__ import annotations

import pytest
import torch

from personas.checkpoint import read_checkpoint
from personas.conversation import Role, Turn
from worker.bases import HUB_IDS, is_installed
from worker.engine.engine import Engine
from worker.engine.request import Request, SamplingParams
from worker.loading import SHIPPED, SHIPPED_FOLDER, LoadedModel, load_model

FACTS = (["My name is Ada.", "I keep bees."], ["I am a pirate."])
QUESTIONS = ("hi! what is your name?", "do you have any pets?")
NUM_NEW_TOKENS = 16


def load(name: str) -> LoadedModel:
    folder = SHIPPED_FOLDER / name
    base = read_checkpoint(folder).base
    if base in HUB_IDS and not is_installed(base):
        pytest.skip(f"its base {base} is not installed")
    return load_model(str(folder), device="cpu", dtype="float32")


def generate(loaded: LoadedModel, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.1,
        max_new_tokens=NUM_NEW_TOKENS,
        eos_token_id=sorted(loaded.layout.stop_ids),
        pad_token_id=loaded.layout.pad_id,
        suppress_tokens=sorted(loaded.banned_ids),
    )
    return [token for token in out[0, len(prompt) :].tolist() if token not in loaded.layout.stop_ids]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_says_what_generate_says(name: str) -> None:
    loaded = load(name)
    params = SamplingParams(do_sample=False, repetition_penalty=1.1, max_new_tokens=NUM_NEW_TOKENS)
    prompts = [
        tuple(loaded.layout.prompt(facts, [Turn(Role.USER, question)], max_tokens=loaded.window, reserve=20).ids)
        for facts in FACTS
        for question in QUESTIONS
    ]
    expected = [generate(loaded, prompt) for prompt in prompts]
    with Engine.for_model(loaded) as engine:
        futures = [engine.submit(Request(prompt_ids=prompt, params=params)) for prompt in prompts]
        assert [list(future.result(120).ids) for future in futures] == expected
