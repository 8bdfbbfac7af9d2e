"""The order and content of batches is fixed: a shipped configuration must give the shipped weights again."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

from tests.helpers.layouts import chat_layout, persona_layout
from trainer.config import Source
from trainer.data import Corpus, Stream

DATA = Path(__file__).parent / "data"
EVERYTHING = {"spaced": 0.5, "named": 0.5, "questions": 0.6, "drop_facts": 0.4}
SOURCES = (
    {"path": DATA / "personachat.jsonl", "share": 0.5, **EVERYTHING},
    {"path": DATA / "named.jsonl", "share": 0.2, **EVERYTHING},
    {"path": DATA / "spc.jsonl", "share": 0.2, "both_sides": False, **EVERYTHING},
    {"path": DATA / "parlai.txt", "share": 0.1},
)


def digest(stream: Stream, num_batches: int = 12) -> str:
    total = hashlib.sha256()
    for window, index, batch in itertools.islice(stream.batches(), num_batches):
        parts = [[int(part) for part in row] for row in batch.parts]
        total.update(json.dumps([window, index, batch.ids, parts]).encode())
    return total.hexdigest()[:16]


def test_the_stream_gives_the_batches_it_gave_when_the_shipped_models_were_trained() -> None:
    corpora = [Corpus.read(Source.model_validate(source)) for source in SOURCES]
    found = [
        digest(Stream(corpora, layout, seed=7, micro_tokens=1000, max_tokens=256, loss_on=loss_on))
        for layout, loss_on in ((persona_layout(), "both"), (chat_layout(), "bot"))
    ]
    assert found == ["a7a501afb42bb527", "3b209ae574f1b4b0"]
