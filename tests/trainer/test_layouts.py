"""Runs in every layout: what is trained, and what a scored token sees, is what `transformers` computes for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from personas.errors import LayoutError
from personas.layout import Layout, Part, load_layout
from personas.registry import SHIPPED_FOLDER
from tests.trainer.test_train import DATA, config, tiny_base
from trainer.config import ConfigError
from trainer.continuing import settled
from trainer.evaluate import score_dialogues
from trainer.formats import Dialogue, read_dialogues
from trainer.layouts import build_layout
from trainer.model import hidden_states
from trainer.train import Run

__all__ = ["tiny_base"]


def expected_nll(model: GPT2LMHeadModel, layout: Layout, dialogues: list[Dialogue]) -> float:
    """Sum the loss that `transformers` itself computes, one example at a time."""
    total = 0.0
    for dialogue in dialogues:
        for example in layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=128):
            labels = [i if p != Part.CONTEXT else -100 for i, p in zip(example.ids, example.parts, strict=True)]
            types = layout.token_types(example.ids)
            output = model(
                torch.tensor([example.ids]),
                labels=torch.tensor([labels]),
                token_type_ids=None if types is None else torch.tensor([types]),
            )
            total += output.loss.item() * sum(label != -100 for label in labels[1:])
    return total


@pytest.mark.parametrize("layout_name", ["convai", "dialogpt", "corpus"])
def test_a_run_learns_in_every_layout_and_scores_as_transformers_does(tmp_path: Path, layout_name: str) -> None:
    run = Run.prepare(config(layout=layout_name, max_tokens=128, train_tokens=1500), tmp_path)
    folder = run.train()
    model, layout = GPT2LMHeadModel.from_pretrained(folder), load_layout(folder)
    dialogues = list(read_dialogues(DATA / "parlai.txt"))
    head = model.get_output_embeddings().weight
    score = score_dialogues(dialogues, layout, hidden_states(model, layout), head, max_tokens=128)
    bot_texts = [turn.text for dialogue in dialogues for turn in dialogue.turns if turn.role == "bot"]
    assert layout.name == layout_name
    assert score.nll_text + score.nll_stop == pytest.approx(expected_nll(model, layout, dialogues), rel=1e-4)
    assert score.num_words == sum(len(text.split()) for text in bot_texts)
    assert score.num_turns_left_out == 0


def test_token_types_change_what_a_model_computes(tmp_path: Path) -> None:
    run = Run.prepare(config(layout="convai", max_tokens=128), tmp_path)
    ids = torch.tensor([run.layout.prompt(["I am Ada."], [], max_tokens=99, reserve=9).ids])
    with_types = run.model.hidden(ids, dtype=torch.float32)
    without = run.model.model.base_model(input_ids=ids).last_hidden_state
    assert not torch.allclose(with_types, without)


def test_a_model_without_token_types_is_refused_for_convai(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(LayoutError, match="llama takes no token types"):
        Run.prepare(config(base=str(tiny_base), layout="convai"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_gone_on_with_in_its_own_layout(tmp_path: Path) -> None:
    folder = Run.prepare(config(train_tokens=900), tmp_path / "first").train()
    again = config(base=str(folder), max_tokens=128)
    layout = build_layout(again, [], tmp_path)
    assert (layout.name, layout.max_tokens) == ("persona", 128)
    assert layout.encode("how are you") == load_layout(folder).encode("how are you")
    with pytest.raises(ConfigError, match="was trained with persona"):
        build_layout(config(base=str(folder), layout="dialogpt"), [], tmp_path)


def test_a_shipped_model_is_a_base_by_its_name(tmp_path: Path) -> None:
    layout = build_layout(config(base="starter"), [], tmp_path)
    assert layout.tokenizer_json() == load_layout(SHIPPED_FOLDER / "starter").tokenizer_json()
    assert settled({"base": "starter"})["max_tokens"] == load_layout(SHIPPED_FOLDER / "starter").max_tokens
    assert list(tmp_path.iterdir()) == []
