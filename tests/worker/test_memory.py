"""How many models fit: what each counts for, and what there is for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personas.settings import Settings
from worker.loading import Found
from worker.memory import GIB, engine_bytes, memory_budget, model_bytes


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
