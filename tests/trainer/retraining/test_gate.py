"""The gate's decision, figure by figure, and its measuring with a real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personas.limits import GateLimits
from personas.settings import load_settings
from trainer.retraining.gate import Measured, decide, measure
from trainer.retraining.general import general_set
from worker.loading import load_model

LIMITS = GateLimits()
PRESENT = Measured(
    bpb_new=1.5, bpb_general=1.2, probe=0.5, repetition=0.01, same_reply=0.1, empty=0.0, smoke=("a", "b", "c")
)


def test_a_model_like_the_present_one_passes() -> None:
    verdict = decide(PRESENT, PRESENT, LIMITS)
    assert verdict.is_accepted
    assert len(verdict.figures) == 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bpb_new": 1.53}, "new data 1.53 bits per byte, expected at most 1.52"),
        ({"bpb_new": float("nan")}, "new data nan bits per byte, expected at most 1.52"),
        ({"bpb_general": 1.4}, "general set 1.4 bits per byte, expected at most 1.35"),
        ({"probe": 0.3}, "probe 0.3, expected at least 0.35"),
        ({"repetition": 0.2}, "repetition 0.2, expected at most 0.05"),
        ({"same_reply": 0.9}, "same reply 0.9, expected at most 0.3"),
        ({"empty": 0.1}, "empty replies 0.1, expected at most 0.05"),
        ({"smoke": ("Hm.", "hm", "hm!", "")}, "smoke conversation 3 failed replies, expected at most 1"),
    ],
)
def test_each_figure_can_refuse_alone(change: dict[str, Any], reason: str) -> None:
    verdict = decide(replace(PRESENT, **change), PRESENT, LIMITS)
    assert verdict.reasons == (reason,)


def test_a_share_that_the_present_model_exceeds_is_judged_by_that_model() -> None:
    present = replace(PRESENT, same_reply=0.8, empty=0.2, probe=0.0)
    assert decide(present, present, LIMITS).is_accepted
    assert not decide(replace(present, same_reply=0.9), present, LIMITS).is_accepted


def test_limits_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONABOT_GATE__MAX_FORGETTING", "0.5")
    limits = load_settings().gate
    assert decide(replace(PRESENT, bpb_general=1.6), PRESENT, limits).is_accepted


def test_a_model_is_measured_the_same_every_time(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model), device="cpu", dtype="float32")
    new, general = general_set()[:2], general_set()[2:4]
    measured = measure(loaded, new, general=general)
    assert measured == measure(loaded, new, general=general)
    assert 3.0 < measured.bpb_new < 12.0
    assert measured.probe < 0.2
    assert len(measured.smoke) == 6
