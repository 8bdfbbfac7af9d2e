"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.cli import ROOT, home, tiny_model

__all__ = ["home", "model", "tiny_model"]


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> Path:
    """Return the shipped starter model; where its weights were not checked out, a tiny random one."""
    starter = ROOT / "models" / "starter"
    return starter if (starter / "model.safetensors").exists() else tiny_model
