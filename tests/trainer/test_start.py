"""What a run begins with: its model where it is to be, and how much of a GPU's memory it may take."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.layouts import persona_layout
from tests.trainer.test_train import config
from trainer.model import ATTENTION
from trainer.start import build_model, limit_memory, memory_share

GIB = 2**30


@pytest.mark.parametrize(
    ("asked", "free", "share"), [(0.3, 80 * GIB, 0.3), (1.0, 0, 1.0), (0.0, 80 * GIB, 0.8), (0.0, 20 * GIB, 0.2)]
)
def test_a_run_takes_what_it_is_given_or_four_fifths_of_what_is_free(asked: float, free: int, share: float) -> None:
    assert memory_share(asked, free, 80 * GIB) == pytest.approx(share)


@pytest.mark.parametrize("share", [None, 0.0, 0.5])
def test_on_a_cpu_nothing_is_limited(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: pytest.fail("there is no GPU"))
    limit_memory(torch.device("cpu"), share)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_run_fails_beyond_its_share_instead_of_taking_what_others_need() -> None:
    total = torch.cuda.mem_get_info()[1]
    limit_memory(torch.device("cuda"), 0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 5, dtype=torch.uint8, device="cuda")
        torch.empty(total // 50, dtype=torch.uint8, device="cuda")
    finally:
        limit_memory(torch.device("cuda"), 1.0)


@pytest.mark.parametrize(("device", "is_ours"), [("cpu", True), ("meta", False)])
def test_our_attention_is_for_the_cpu_and_everywhere_else_the_librarys_own(device: str, is_ours: bool) -> None:
    built = build_model(config(num_candidates=2), persona_layout(), torch.device(device))
    assert (built.model.config._attn_implementation == ATTENTION) is is_ours
    assert {parameter.device.type for parameter in built.parameters()} == {device}
