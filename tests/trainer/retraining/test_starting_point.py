"""What is trained on: a plain model in a layout that its weights can learn, and an adapter on its original base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from personas.checkpoint import Description, read_checkpoint, write_description
from personas.settings import Settings
from tests.helpers.retraining import write_data
from tests.trainer.test_recipe_files import base as plain_base
from trainer.config import load_config
from trainer.retraining import recipes
from trainer.retraining.dry_run import dry_run
from trainer.retraining.starting_point import on_original_base
from trainer.train import Run
from worker.queue.job import Order

LAYER = "base_model.model.layers.0.q_proj"


def adapter(folder: Path, *, rank: int, alpha: int, base: str, seed: int) -> torch.Tensor:
    """Write an adapter of one layer; return what it adds to the layer's weights."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator)
    tensors = {f"{LAYER}.lora_A.weight": down.half(), f"{LAYER}.lora_B.weight": up.half()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("layout.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    write_description(folder, Description(kind="adapter", base=base))
    return up.half().float() @ down.half().float() * alpha / rank


def test_the_joined_adapter_adds_what_both_add(tmp_path: Path) -> None:
    start, trained = tmp_path / "start", tmp_path / "trained"
    first = adapter(start, rank=2, alpha=4, base="smollm2-135m-instruct", seed=1)
    second = adapter(trained, rank=3, alpha=3, base="/somewhere/merged", seed=2)
    on_original_base(trained, start)
    tensors = load_file(trained / "adapter_model.safetensors")
    config = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 5
    down, up = (tensors[f"{LAYER}.lora_{side}.weight"].float() for side in "AB")
    torch.testing.assert_close(up @ down, first + second, atol=2e-2, rtol=2e-3)
    assert read_checkpoint(trained).base == "smollm2-135m-instruct"


@pytest.mark.parametrize(("is_large", "layout"), [(False, "persona"), (True, "dialogpt")])
def test_a_plain_model_learns_speakers_and_a_large_one_keeps_its_layout_since_an_adapter_learns_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool, layout: str
) -> None:
    if is_large:
        monkeypatch.setattr(recipes, "LARGE_BASE_BYTES", 1000)
    write_data(tmp_path / "ada.jsonl")
    settings = Settings(data_dir=tmp_path, device="cpu", training_data={"min_order": 1})
    start = plain_base(tmp_path / "gpt2", is_old=False)
    dry_run(tmp_path, Order("ada", "ada.jsonl", "quick", base=str(start)), settings)
    run = Run.prepare(load_config(tmp_path / "config.toml", {}), tmp_path / "run")
    assert (run.layout.name, run.model.adapter is not None) == (layout, is_large)
