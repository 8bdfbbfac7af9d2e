"""Which numbers the model is computed in."""

from __future__ import annotations

import pytest
import torch

from personas.errors import SettingsError
from worker import device
from worker.device import INT8_FEATURES, choose_dtype, stored_dtype

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken() -> None:
    assert choose_dtype(CPU, "bfloat16") == (torch.bfloat16, "asked for")


def test_int8_weights_are_loaded_as_float32() -> None:
    assert stored_dtype(torch.int8) is torch.float32
    assert stored_dtype(torch.bfloat16) is torch.bfloat16


def test_int8_is_refused_on_a_gpu() -> None:
    with pytest.raises(SettingsError, match="for CPUs"):
        choose_dtype(torch.device("cuda"), "int8")


def test_int8_is_refused_where_the_cpu_cannot_multiply_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_features", lambda: {"avx2": True})
    with pytest.raises(SettingsError, match="avx512_vnni"):
        choose_dtype(CPU, "int8")
    monkeypatch.setattr(device, "cpu_features", lambda: {INT8_FEATURES[-1]: True})
    assert choose_dtype(CPU, "int8")[0] is torch.int8
