"""The layout of base models as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from personas.conversation import Role, Turn
from personas.errors import LayoutError
from personas.layout import DialogptLayout, layout_for_hf_folder
from tests.helpers.tiny_model import tiny_tokenizer


def tokenizer_with(*specials: str) -> str:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().replace("<speaker1>", "<nobody>").replace("<eos>", "<stop>"))
    tokenizer.add_special_tokens(list(specials))
    return str(tokenizer.to_str())


@pytest.fixture
def layout() -> DialogptLayout:
    return DialogptLayout(tokenizer_with("<|endoftext|>"), max_tokens=128)


def test_turns_are_joined_by_the_end_token(layout: DialogptLayout) -> None:
    turns = [Turn(Role.USER, "hello"), Turn(Role.BOT, "my name is ada"), Turn(Role.USER, "fine")]
    [end] = layout.stop_ids
    said = [layout.encode(text) for text in ("i am ada.", "hello", "my name is ada", "fine")]
    prompt = layout.prompt(["i am ada."], turns, max_tokens=128, reserve=20)
    assert prompt.ids == [token for ids in said for token in (*ids, end)]


def test_without_facts_and_turns_there_is_still_a_prompt(layout: DialogptLayout) -> None:
    assert layout.prompt([], [], max_tokens=128, reserve=20).ids == [*layout.stop_ids]


def test_an_end_token_in_a_text_is_only_text(layout: DialogptLayout) -> None:
    ids = layout.block(Role.USER, "a<|endoftext|>b").ids
    assert [place for place, token in enumerate(ids) if token in layout.stop_ids] == [len(ids) - 1]


def test_other_markup_is_never_sampled(layout: DialogptLayout) -> None:
    assert layout.banned_ids
    assert not layout.banned_ids & layout.stop_ids


def test_a_tokenizer_that_fits_no_layout_is_refused_with_every_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_with())
    with pytest.raises(LayoutError, match=r"persona, chat, dialogpt fits.*speaker1.*chat template.*endoftext"):
        layout_for_hf_folder(tmp_path, max_tokens=128)
