"""A byte-level BPE trained on the run's own data, for models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from personas.layout import PERSONA_TOKENS
from trainer.formats import Dialogue


def train_tokenizer(dialogues: Iterable[Dialogue], *, vocabulary: int) -> str:
    """Return the `tokenizer.json` of a BPE with `vocabulary` entries, the layout's tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(PERSONA_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(dialogues), trainer)
    text: str = tokenizer.to_str()
    return text


def _texts(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    for dialogue in dialogues:
        yield from dialogue.facts
        yield from (turn.text for turn in dialogue.turns)
