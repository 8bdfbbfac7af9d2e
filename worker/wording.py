"""What settings say in words, in a layout's ids: bad words and biases. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from personas.layout import Layout
from worker.engine.request import Ids


def phrases(words: Iterable[str], layout: Layout) -> tuple[Ids, ...]:
    """Encode each word as it stands at the start of a text and after a space, as `generate`'s users do by hand."""
    return tuple(dict.fromkeys(ids for word in words for ids in _spellings(word, layout)))


def biases(weights: Mapping[str, float], layout: Layout) -> tuple[tuple[Ids, float], ...]:
    """Encode each word with its bias, which a word of several tokens adds to the last of them."""
    return tuple({ids: bias for word, bias in weights.items() for ids in _spellings(word, layout)}.items())


def _spellings(word: str, layout: Layout) -> Iterator[Ids]:
    for text in (word, " " + word.lstrip()):
        if ids := tuple(layout.encode(text)):
            yield ids
