"""How many models fit: what each counts for, and what there is for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from personas.settings import Settings
from worker.loading import Found
from worker.memory import GIB, NUM_KERNELS, engine_bytes, keep_few_kernels, memory_budget, model_bytes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a GPU with 80 GB, of which 78 are free."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (78 * GIB, 80 * GIB))


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_two_engines_of_vllm_fit_and_no_third_however_small_their_models(tiny_model: Path) -> None:
    settings = Settings(engine="vllm", device="cuda")
    size, budget = engine_bytes(Found("tiny", tiny_model), settings), memory_budget(settings)
    assert 2 * size <= budget < 3 * size
    assert memory_budget(settings.model_copy(update={"model_memory_gb": 20.0})) == 20 * GIB


@pytest.mark.usefixtures("gpu")
def test_our_own_engine_counts_weights_and_leaves_half_to_caches(tiny_model: Path) -> None:
    settings, found = Settings(device="cuda", dtype="float16"), Found("tiny", tiny_model)
    assert engine_bytes(found, settings) == model_bytes(found, device="cuda", dtype="float16") < GIB
    assert memory_budget(settings) == 39 * GIB


def test_on_a_cpu_vllm_counts_weights_too(tiny_model: Path) -> None:
    settings, found = Settings(engine="vllm", device="cpu", dtype="float32"), Found("tiny", tiny_model)
    assert engine_bytes(found, settings) == model_bytes(found, device="cpu", dtype="float32") > 0


def test_few_kernels_are_kept_unless_the_operator_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "1024"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(NUM_KERNELS)
