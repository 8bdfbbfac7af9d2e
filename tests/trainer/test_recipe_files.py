"""The shipped recipes are valid, and train and serve bases that lie as on the hub: the same files, tiny shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings
from tests.helpers.layouts import SENTENCES
from tests.trainer.test_cli import DATA
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.formats import PARSERS, Dialogue
from trainer.tokenizer import train_tokenizer
from trainer.train import Run
from worker.engine.engine import Engine
from worker.loading import load_model
from worker.respond import Responder

RECIPES = Path(__file__).parents[2] / "trainer" / "recipes"
END = "<|endoftext|>"


def base(folder: Path, *, is_old: bool) -> Path:
    """Write a tiny GPT-2 with the files of `gpt2`, or with `is_old` those of `microsoft/DialoGPT-medium`."""
    folder.mkdir()
    turns = tuple(Turn(Role.USER, text) for text in SENTENCES)
    trained = json.loads(train_tokenizer([Dialogue((), turns)], vocabulary=400))
    ours = {token["content"] for token in trained["added_tokens"]}
    tokens = [*(token for token in trained["model"]["vocab"] if token not in ours), END]
    vocabulary, end = {token: place for place, token in enumerate(tokens)}, len(tokens) - 1
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in trained["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}')
    if not is_old:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        trained["model"]["vocab"] = vocabulary
        trained["added_tokens"] = [{"id": end, "content": END, "special": True, **flags}]
        (folder / "tokenizer.json").write_text(Tokenizer.from_str(json.dumps(trained)).to_str())
    config = GPT2Config(vocab_size=end + 1, n_embd=32, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    if is_old:
        config.to_json_file(folder / "config.json")
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    return folder


def small(recipe: str, **changes: object) -> TrainConfig:
    """Return a recipe's configuration with little data and little to compute."""
    little = {"data": [{"path": DATA / "personachat.jsonl"}], "valid": [], "epochs": None, "train_tokens": 2000}
    sizes = {"batch_tokens": 600, "micro_tokens": 600, "max_tokens": 256, "dtype": "fp32", "num_candidates": 1}
    return load_config(RECIPES / recipe, little | sizes | changes)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_configuration(path: Path) -> None:
    config = load_config(path, {})
    assert all(source.format is None or source.format in PARSERS for source in config.data)
    assert f"trainer/recipes/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "is_old", "layout"), [("gpt2.toml", False, "persona"), ("dialogpt_medium.toml", True, "dialogpt")]
)
def test_a_base_as_it_lies_on_the_hub_is_fine_tuned_and_answers(
    tmp_path: Path, recipe: str, is_old: bool, layout: str
) -> None:
    settings = small(recipe, base=str(base(tmp_path / "base", is_old=is_old)))
    folder = Run.prepare(settings, tmp_path / "run").train()
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    assert loaded.layout.name == layout
    persona = load_catalogue(None).get("Fennick")
    with Engine.for_model(loaded) as engine:
        reply = Responder(loaded, engine).respond(
            persona, [Turn(Role.USER, "hello")], GenerationSettings(seed=1, max_new_tokens=5)
        )
    assert reply.num_new_tokens > 0


def test_the_token_that_ends_a_turn_begins_as_the_bases_end_of_text(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", is_old=False)
    end = GPT2LMHeadModel.from_pretrained(folder).transformer.wte.weight[-1]
    run = Run.prepare(small("gpt2.toml", base=str(folder)), tmp_path / "run")
    (stop,) = run.layout.stop_ids
    assert stop > run.layout.encode("hello")[0]
    assert torch.equal(run.model.head[stop], end)


def test_an_adapter_is_refused_where_the_layout_would_add_tokens_to_its_base(tmp_path: Path) -> None:
    lora = {"base": str(base(tmp_path / "base", is_old=False)), "lora": {"rank": 2, "alpha": 2}}
    with pytest.raises(ConfigError, match=r"lacks the layout's tokens <pad>.*--layout dialogpt, or chat"):
        Run.prepare(small("gpt2.toml", **lora), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert Run.prepare(small("gpt2.toml", **lora, layout="dialogpt"), tmp_path / "run").model.adapter is not None


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({"base": None}, 1e-3),
        ({}, 5e-5),
        ({"lora": {"rank": 2, "alpha": 2}, "layout": "dialogpt"}, 1e-3),
        ({"learning_rate": 0.1}, 0.1),
    ],
)
def test_the_learning_rate_goes_by_what_is_trained_and_is_recorded(
    tmp_path: Path, changes: dict[str, object], rate: float
) -> None:
    given = {"base": str(base(tmp_path / "base", is_old=False)), "learning_rate": None, **changes}
    run = Run.prepare(small("gpt2.toml", **given), tmp_path / "run")
    run.folder.record(run.config)
    assert load_config(tmp_path / "run" / "train.toml", {}).learning_rate == rate
