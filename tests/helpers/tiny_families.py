"""Tiny random models of two families, made for comparing with `transformers` on the same weights."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY_SIZE = 300
WINDOW = 128


def tiny_gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE,
        n_positions=WINDOW,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
    )
    return seeded(GPT2LMHeadModel, config)


def tiny_llama(vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
    )
    return seeded(LlamaForCausalLM, config)


def seeded(kind: type, config: object) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


FAMILIES = {"gpt2": tiny_gpt2, "llama": tiny_llama}


def prompts(*lengths: int, seed: int = 1) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(VOCABULARY_SIZE, (length,), generator=generator).tolist()) for length in lengths]
