"""A folder of `GPT2DoubleHeadsModel`, as TransferTransfo's users have them: our engine says what `generate` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2DoubleHeadsModel

from personas.conversation import Role, Turn
from personas.errors import CheckpointError
from personas.layout import PERSONA_TOKENS
from tests.helpers.layouts import tokenizer_json
from tests.helpers.tiny_families import seeded
from worker.engine.engine import Engine
from worker.engine.request import Request, SamplingParams
from worker.head import PREFIX, load_head
from worker.loading import LoadedModel, load_model

FACTS = ["My name is Ada.", "I keep bees."]
NUM_NEW_TOKENS = 20


def test_a_published_checkpoint_says_what_generate_says(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=400, n_positions=256, n_embd=64, n_layer=2, n_head=4, num_labels=1, initializer_range=0.15
    )
    seeded(GPT2DoubleHeadsModel, config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")
    assert loaded.layout.name == "convai"
    assert loaded.head is not None
    double = GPT2DoubleHeadsModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    params = SamplingParams(do_sample=False, repetition_penalty=1.0, max_new_tokens=NUM_NEW_TOKENS)
    prompts = [
        loaded.layout.prompt(FACTS, [Turn(Role.USER, text)], max_tokens=loaded.window, reserve=NUM_NEW_TOKENS).ids
        for text in ("hello there, how are you today?", "do you have any pets?")
    ]
    with Engine.for_model(loaded) as engine:
        futures = [engine.submit(Request(prompt_ids=tuple(prompt), params=params)) for prompt in prompts]
        replies = [list(future.result(60).ids) for future in futures]
    assert replies == [generate(double, list(prompt), loaded) for prompt in prompts]
    assert min(map(len, replies)) > 1


@pytest.mark.parametrize("form", ["safetensors", "bin", "bin of 2019"])
def test_the_second_head_among_the_weights_is_enough_to_know_it_by(tmp_path: Path, form: str) -> None:
    weights = seeded(GPT2DoubleHeadsModel, GPT2Config(vocab_size=400, n_embd=64, n_layer=1, n_head=2, num_labels=1))
    weights.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if form != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        path = tmp_path / "pytorch_model.bin"
        torch.save(weights.state_dict(), path, _use_new_zipfile_serialization=form == "bin")
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": [*PERSONA_TOKENS]}))
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")
    assert loaded.layout.name == "convai"
    assert loaded.head is not None
    assert torch.equal(loaded.head.weight, weights.multiple_choice_head.summary.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=f"{name} can't be read as weights"):
        load_head(tmp_path)


def test_weights_that_nobody_reads_beside_good_ones_are_not_looked_at(tmp_path: Path) -> None:
    weights = {f"{PREFIX}summary.weight": torch.ones(1, 8), f"{PREFIX}summary.bias": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert load_head(tmp_path) is not None
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    assert load_head(tmp_path) is None


def generate(double: GPT2DoubleHeadsModel, prompt: list[int], loaded: LoadedModel) -> list[int]:
    """The reply of `transformers`, which repeats the last token type as our layout has it for a reply."""
    ids = torch.tensor([prompt])
    out = double.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        token_type_ids=torch.tensor([loaded.layout.token_types(prompt)]),
        do_sample=False,
        max_new_tokens=NUM_NEW_TOKENS,
        eos_token_id=sorted(loaded.layout.stop_ids),
        pad_token_id=loaded.layout.pad_id,
        suppress_tokens=sorted(loaded.banned_ids),
    )
    return [token for token in out[0, len(prompt) :].tolist() if token not in loaded.layout.stop_ids]
