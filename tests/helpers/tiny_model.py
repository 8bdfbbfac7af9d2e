"""A tiny random GPT-2 as a complete checkpoint: what a test takes where any model will do. Written in a second."""

from __future__ import annotations

from pathlib import Path

from personas.checkpoint import Description, write_description
from personas.conversation import Role, Turn
from personas.layout import PersonaLayout
from personas.persona import GenerationSettings
from trainer.formats import Dialogue
from trainer.tokenizer import train_tokenizer

TEXT = (
    "hello there, how are you today? i am fine, thank you. my name is ada and i write programs.",
    "what do you do for a living? i work on a farm with my two dogs and a very old horse.",
    "do you have any pets? yes, my dog is biscuit. i like to read books and to walk by the sea.",
    "where are you from? i live in a small town near the mountains. it often rains here in autumn.",
)
VOCABULARY_SIZE = 448


def tiny_checkpoint(folder: Path, *, seed: int = 0, max_tokens: int = 256, max_new_tokens: int = 16) -> Path:
    """Write a random 2-layer, 64-wide GPT-2 with layout `persona` into `folder`; the same seed gives the same weights.

    Its replies are gibberish of up to `max_new_tokens` tokens, but they depend on every token of the prompt.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True, exist_ok=True)
    layout = PersonaLayout(tiny_tokenizer(), max_tokens=max_tokens)
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE,
        n_positions=max_tokens,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=min(layout.stop_ids),
        pad_token_id=layout.pad_id,
        initializer_range=0.15,  # wide enough for replies that differ from prompt to prompt
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    layout.write(folder)
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.to_json_file(folder / "config.json")
    write_description(
        folder, Description(kind="full", generation=GenerationSettings(temperature=0.8, max_new_tokens=max_new_tokens))
    )
    return folder


def tiny_tokenizer() -> str:
    """Train a byte-level BPE on a few sentences and return its `tokenizer.json`."""
    turns = tuple(Turn(Role.USER, text) for text in TEXT)
    return train_tokenizer([Dialogue((), turns)], vocabulary=VOCABULARY_SIZE)
