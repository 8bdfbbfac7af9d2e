"""A LoRA adapter reaches every linear layer of any family, and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from tests.helpers.tiny_families import FAMILIES, VOCABULARY_SIZE, WINDOW, seeded
from trainer.adapter import linear_names, with_adapter
from trainer.config import Lora


def tiny_neox() -> PreTrainedModel:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None}
    return seeded(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(vocab_size=VOCABULARY_SIZE, max_position_embeddings=WINDOW, **shape, **ends),
    )


def tiny_phi3() -> PreTrainedModel:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return seeded(
        Phi3ForCausalLM, Phi3Config(vocab_size=VOCABULARY_SIZE, max_position_embeddings=WINDOW, **shape, **ends)
    )


# A layer's linear layers, as their families call them.
NAMES = {
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
}


@pytest.mark.parametrize(("name", "make"), [*FAMILIES.items(), ("neox", tiny_neox), ("phi3", tiny_phi3)])
def test_every_linear_layer_gets_an_adapter_and_the_output_head_none(name: str, make: type[PreTrainedModel]) -> None:
    model = make()
    assert linear_names(model) == NAMES[name]
    with_adapter(model, Lora(rank=2, alpha=2))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_linear = sum(hasattr(module, "lora_A") for module in model.modules())
    assert len(trained) == 2 * num_linear
    assert num_linear == 2 * (len(NAMES[name]) + (name == "gpt2"))  # attention and MLP have a c_proj each
    assert not hasattr(model.get_output_embeddings(), "lora_A")
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, VOCABULARY_SIZE)


def test_putting_an_adapter_on_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_adapter(FAMILIES["llama"](), Lora(rank=2, alpha=2))
