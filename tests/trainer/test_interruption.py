"""Ctrl-C during a run: the step in hand is finished and saved."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.trainer.test_train import config, weights
from trainer.data import Batch
from trainer.interruption import Interruption
from trainer.optimizer import Optimizer
from trainer.step import Taken
from trainer.train import Run


def test_a_run_that_ctrl_c_interrupts_within_a_step_ends_with_the_same_weights_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Run.prepare(config(), whole).train()
    run, take = Run.prepare(config(), parts), Run._step

    def interrupted(self: Run, optimizer: Optimizer, batches: list[Batch]) -> Taken:
        if self.place.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, optimizer, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", interrupted)
        with pytest.raises(SystemExit) as ended:
            run.train()
    assert (ended.value.code, run.place.step) == (128 + signal.SIGINT, 3)
    Run.prepare(config(), parts).train()
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
