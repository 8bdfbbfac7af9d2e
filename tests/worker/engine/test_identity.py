"""A reply is the same alone, beside others, after what its prompt shares with earlier ones, and after an eviction."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2DoubleHeadsModel, PreTrainedModel

from tests.helpers.tiny_families import FAMILIES, WINDOW, prompts, seeded, tiny_gpt2, tiny_llama
from worker.engine.attention import Span, Step
from worker.engine.cache import KVCache
from worker.engine.engine import Engine
from worker.engine.models import network_for
from worker.engine.models.gpt2 import Gpt2
from worker.engine.request import Request, SamplingParams
from worker.engine.runner import RaggedRunner

WAIT_S = 60
GREEDY = SamplingParams(do_sample=False, repetition_penalty=1.0, max_new_tokens=8)


def tiny_double_heads() -> PreTrainedModel:
    model = seeded(GPT2DoubleHeadsModel, tiny_gpt2().config)
    model.load_state_dict(tiny_gpt2().state_dict(), strict=False)
    return model


def reply(engine: Engine, ids: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    return engine.submit(Request(prompt_ids=tuple(ids), params=params)).result(WAIT_S).ids


def talk(engine: Engine, params: SamplingParams, *, num_turns: int = 3) -> list[tuple[int, ...]]:
    """Three conversations with one persona take turns; each prompt holds what was said before."""
    [persona] = prompts(20, seed=5)
    histories = [list(persona) for _ in range(3)]
    replies = []
    for turn in range(num_turns):
        said = prompts(4, 7, 5, seed=10 + turn)
        for history, words in zip(histories, said, strict=True):
            history += words
        futures = [engine.submit(Request(prompt_ids=tuple(history), params=params)) for history in histories]
        for history, future in zip(histories, futures, strict=True):
            replies.append(future.result(WAIT_S).ids)
            history += replies[-1]
    return replies


def talk_alone(model: PreTrainedModel, params: SamplingParams) -> list[tuple[int, ...]]:
    """The same, each reply by a slot that has been emptied."""
    with Engine(model, max_num_seqs=1) as engine:
        runner = engine._runner
        assert isinstance(runner, RaggedRunner)
        runner.attach = lambda slot, ids: 0
        replies = talk(engine, params)
        assert runner.prefix_counts.num_reused_tokens == 0
        return replies


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=3, max_new_tokens=8)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    ("max_num_seqs", "max_saved_bytes"), [(4, 1 << 20), (1, 1 << 20), (2, 1 << 20), (1, 30_000), (1, 0)]
)
def test_replies_are_the_same_with_reuse_and_after_evictions(
    make: type, params: SamplingParams, max_num_seqs: int, max_saved_bytes: int
) -> None:
    model = make()
    with Engine(model, max_num_seqs=max_num_seqs) as engine:
        runner = engine._runner
        assert isinstance(runner, RaggedRunner)
        runner._memory._max_saved_bytes = max_saved_bytes
        replies = talk(engine, params)
        if max_saved_bytes > 30_000:
            assert runner.prefix_counts.hit_rate > 0.4
    assert replies == talk_alone(model, params)


def test_a_double_head_checkpoint_says_what_its_language_model_says() -> None:
    [ids] = prompts(12)
    with Engine(tiny_double_heads()) as double, Engine(tiny_gpt2()) as single:
        assert isinstance(double._runner, RaggedRunner)
        assert isinstance(double._runner._network, Gpt2)
        assert reply(double, ids, GREEDY) == reply(single, ids, GREEDY)


def test_token_types_are_added_as_the_model_adds_them() -> None:
    model = tiny_gpt2()
    [ids], [types] = prompts(9), prompts(9, seed=4)
    network = network_for(model, dtype=torch.float32)
    assert isinstance(network, Gpt2)
    positions = torch.arange(9)
    step = Step(
        [Span(0, 9, 0, 0)],
        rows=torch.zeros_like(positions),
        positions=positions,
        cache=KVCache(max_num_rows=1, max_num_tokens=WINDOW),
    )
    with torch.inference_mode():
        own = network(torch.tensor(ids), positions, positions, step, token_types=torch.tensor(types))
        expected = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_freed_weights_leave_the_replies_as_they_are(make: type) -> None:
    [ids], model = prompts(12), make()
    with Engine(make()) as engine:
        expected = reply(engine, ids, GREEDY)
    with Engine(model, frees_weights=True) as engine:
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert reply(engine, ids, GREEDY) == expected


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_rounded_weights_score_nearly_the_same(make: type) -> None:
    model = make()
    [ids] = prompts(40)
    positions = torch.arange(40)
    scores = {}
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        network = network_for(model, dtype=dtype)
        assert network is not None
        cache = KVCache(max_num_rows=1, max_num_tokens=WINDOW)
        step = Step([Span(0, 40, 0, 0)], rows=torch.zeros_like(positions), positions=positions, cache=cache)
        with torch.inference_mode():
            scores[dtype] = network(torch.tensor(ids), positions, positions, step)
    exact = scores.pop(torch.float32)
    for rounded in scores.values():
        assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_rotary_positions_of_a_model_that_changes_them_are_left_to_it() -> None:
    model = tiny_llama()
    assert network_for(model, dtype=torch.float32) is not None
    model.model.rotary_emb.rope_type = "dynamic"
    assert network_for(model, dtype=torch.float32) is None
