"""What a run is expected to take: what the last one like it took, and never less than its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from personas.settings import Settings
from trainer.retraining import estimates
from trainer.retraining.recipes import LARGE_BASE_BYTES, Base
from trainer.retraining.starting_point import find_base

SMALL = Base("tiny@1", "models/tiny", "persona", 256, 2000, num_weights=1000)
LARGE = Base("gpt2", "gpt2", "persona", 1024, LARGE_BASE_BYTES + 2, num_weights=LARGE_BASE_BYTES // 2 + 1)


def test_a_run_like_the_last_one_takes_as_long_and_as_much_memory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu")
    (tmp_path / "training").mkdir()
    assert estimates.seconds(settings, SMALL, 1000) is None
    estimates.remember(settings, SMALL, tokens_per_s=50.0, peak_mib=700)
    assert estimates.seconds(settings, SMALL, 1000) == 20.0
    assert estimates.memory_bytes(settings, SMALL, "cpu") == 700 << 20
    assert estimates.seconds(settings, LARGE, 1000) is None


@pytest.mark.parametrize("left", ["", '{"cpu:0:2000": {"tokens_', "[]"])
def test_what_cannot_be_read_is_not_known_and_is_written_anew(tmp_path: Path, left: str) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "estimates.json").write_text(left, encoding="utf-8")
    assert estimates.seconds(settings, SMALL, 1000) is None
    estimates.remember(settings, SMALL, tokens_per_s=50.0, peak_mib=700)
    assert estimates.seconds(settings, SMALL, 1000) == 20.0
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["estimates.json"]


def test_before_the_first_run_memory_is_what_the_weights_take_and_on_a_gpu_nothing_is_said(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, device="cpu")
    assert estimates.memory_bytes(settings, SMALL, "cpu") == 16_000
    assert estimates.memory_bytes(settings, LARGE, "cpu") == LARGE.num_bytes
    assert estimates.memory_bytes(settings, LARGE, "cuda") == 0


def test_weights_are_counted_by_the_header_of_their_file(tmp_path: Path, tiny_model: Path) -> None:
    base, _ = find_base(Settings(data_dir=tmp_path, device="cpu"), str(tiny_model))
    assert 4 * base.num_weights < base.num_bytes < 4 * base.num_weights + 10_000
