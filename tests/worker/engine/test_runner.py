"""Which runner a model gets, and that each computes what the model computes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.helpers.tiny_families import FAMILIES, VOCABULARY_SIZE, WINDOW, prompts, seeded, tiny_gpt2
from worker.engine.cache import KVCache
from worker.engine.request import Chunk, Request
from worker.engine.request import Sequence as Running
from worker.engine.runner import RaggedRunner, Runner, SequentialRunner, make_runner, model_window

SHAPE = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.15,
}
WIDER = {**SHAPE, "intermediate_size": 96, "max_position_embeddings": WINDOW}
GROUPED = {**WIDER, "num_key_value_heads": 2, "head_dim": 16}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny_neox() -> PreTrainedModel:
    return seeded(GPTNeoXForCausalLM, GPTNeoXConfig(**WIDER, **IDS))


def tiny_qwen3() -> PreTrainedModel:
    return seeded(Qwen3ForCausalLM, Qwen3Config(**GROUPED, **IDS))


def tiny_gemma3() -> PreTrainedModel:
    return seeded(Gemma3ForCausalLM, Gemma3TextConfig(**GROUPED, **IDS, sliding_window=16))


def tiny_bloom() -> PreTrainedModel:
    config = {name: value for name, value in SHAPE.items() if name not in ("num_hidden_layers", "num_attention_heads")}
    return seeded(BloomForCausalLM, BloomConfig(**config, **IDS, n_layer=2, n_head=4))


def own_scores(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    reference = type(model)(model.config).eval()
    reference.load_state_dict(model.state_dict())
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        return reference(input_ids=torch.tensor([list(ids)])).logits[0, -1]


def running(slot: int, ids: Sequence[int]) -> Running:
    sequence = Running(Request(prompt_ids=tuple(ids)))
    sequence.slot = slot
    return sequence


def advance(runner: Runner, *pieces: tuple[Running, int]) -> torch.Tensor:
    """Compute one step, and let the sequences remember what is cached."""
    chunks = [Chunk(sequence, num_tokens) for sequence, num_tokens in pieces]
    logits = runner.run(chunks).logits
    ends = [chunk.end for chunk in chunks]
    for chunk, end in zip(chunks, ends, strict=True):
        chunk.sequence.num_cached_tokens = end
    return logits


@pytest.mark.parametrize("make", [*FAMILIES.values(), tiny_neox, tiny_qwen3], ids=lambda make: make.__name__)
def test_families_with_the_attention_interface_run_in_batches(make: type) -> None:
    assert isinstance(make_runner(make(), max_num_seqs=2, window=WINDOW), RaggedRunner)


@pytest.mark.parametrize("make", [tiny_gemma3, tiny_bloom], ids=lambda make: make.__name__)
def test_other_families_run_one_at_a_time_and_generate_the_same(make: type) -> None:
    model = make()
    runner = make_runner(model, max_num_seqs=2, window=WINDOW)
    assert isinstance(runner, SequentialRunner)
    first, second = (running(slot, ids) for slot, ids in enumerate(prompts(9, 30)))
    advance(runner, (first, 9), (second, 11))
    first.ids.append(5)
    logits = advance(runner, (second, 19), (first, 1))
    for sequence, row in zip((second, first), logits, strict=True):
        torch.testing.assert_close(row, own_scores(model, sequence.ids), atol=1e-3, rtol=1e-3)


def test_a_sequential_runner_recovers_from_a_failed_step() -> None:
    model = tiny_gpt2()
    runner = SequentialRunner(model)
    sequence = running(0, prompts(9)[0])
    advance(runner, (sequence, 9))
    runner.release(0, sequence.ids)
    sequence.ids.append(7)
    [row] = advance(runner, (sequence, 1))
    torch.testing.assert_close(row, own_scores(model, sequence.ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_ragged_batches_score_like_each_sequence_alone(make: type) -> None:
    model = make()
    runner = make_runner(model, max_num_seqs=8, window=WINDOW)
    first, second, third = (running(slot, ids) for slot, ids in zip((5, 0, 2), prompts(70, 3, 20), strict=True))
    advance(runner, (first, 30))
    advance(runner, (second, 3), (first, 40), (third, 6))
    for sequence in (first, second):
        sequence.ids.append(11)
    logits = advance(runner, (first, 1), (third, 14), (second, 1))  # slots 1, 3 and 4 are empty
    for sequence, row in zip((first, third, second), logits, strict=True):
        torch.testing.assert_close(row, own_scores(model, sequence.ids), atol=1e-4, rtol=1e-4)


def test_a_slot_that_is_used_again_forgets_the_one_before() -> None:
    model = tiny_gpt2()
    runner = make_runner(model, max_num_seqs=1, window=WINDOW)
    long, short = prompts(100, 4)
    advance(runner, (running(0, long), 100))
    [row] = advance(runner, (running(0, short), 4))
    torch.testing.assert_close(row, own_scores(model, short), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_fast"])
def test_gpt2_may_have_another_activation(activation: str) -> None:
    made = tiny_gpt2()
    made.config.activation_function = activation
    model = type(made)(made.config).eval()
    model.load_state_dict(made.state_dict())
    [ids] = prompts(20)
    [row] = advance(make_runner(model, max_num_seqs=1, window=WINDOW), (running(0, ids), 20))
    torch.testing.assert_close(row, own_scores(model, ids), atol=1e-4, rtol=1e-4)


def test_low_precision_weights_score_nearly_the_same() -> None:
    model = tiny_gpt2().to(torch.bfloat16)
    [ids] = prompts(50)
    [row] = advance(make_runner(model, max_num_seqs=1, window=WINDOW), (running(0, ids), 50))
    assert row.dtype is torch.float32
    torch.testing.assert_close(row, own_scores(model, ids).float(), atol=0.2, rtol=0.1)


def test_the_window_is_what_the_model_has_positions_for() -> None:
    assert model_window(tiny_gpt2()) == WINDOW
    assert model_window(tiny_bloom()) == 2048


def test_the_cache_grows_with_what_it_holds() -> None:
    cache = KVCache(max_num_rows=8, max_num_tokens=512)
    kv = torch.ones(1, 2, 2, 4)
    cache.reserve(num_rows=1, num_tokens=10)
    assert cache.write(0, torch.tensor([0]), torch.tensor([9]), kv).shape == (2, 1, 2, 64, 4)
    cache.reserve(num_rows=3, num_tokens=100)
    layer = cache.write(0, torch.tensor([2]), torch.tensor([99]), kv)
    assert layer.shape == (2, 3, 2, 128, 4)
    assert layer[:, 0, :, 9].eq(1).all()
    assert layer.sum() == 32
    assert cache.num_bytes == 2 * 3 * 2 * 128 * 4 * 4
