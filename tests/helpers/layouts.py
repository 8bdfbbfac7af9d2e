"""Small layouts for tests: a byte-level BPE trained on a few sentences, and a ChatML-style template."""

from __future__ import annotations

from functools import cache

from personas.conversation import Role, Turn
from personas.layout import ChatLayout, PersonaLayout
from trainer.formats import Dialogue
from trainer.tokenizer import train_tokenizer

SENTENCES = (
    "My name is Ada. I keep bees on a hill. I am afraid of storms.",
    "hello there, how are you today? what do you do for a living?",
    "I am well, thank you! And you? The bees are asleep.",
)
CHATML = (
    "{% for m in messages %}{{'<bos>' + m['role'] + '\n' + m['content'] + '<eos>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)


@cache
def tokenizer_json(vocabulary: int = 400) -> str:
    """Return a tokenizer with the persona layout's special tokens."""
    turns = tuple(Turn(Role.USER, text) for text in SENTENCES)
    return train_tokenizer([Dialogue((), turns)], vocabulary=vocabulary)


def persona_layout(max_tokens: int = 256) -> PersonaLayout:
    return PersonaLayout(tokenizer_json(), max_tokens=max_tokens)


def chat_layout(max_tokens: int = 256) -> ChatLayout:
    return ChatLayout(tokenizer_json(), max_tokens=max_tokens, template=CHATML)
