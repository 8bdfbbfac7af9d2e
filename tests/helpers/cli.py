"""The command line as people start it: a process of its own, with a data folder and settings of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny_model import tiny_checkpoint

ROOT = Path(__file__).parents[2]
OURS = ("PERSONABOT_", "DISCORD_TOKEN", "TELEGRAM_TOKEN", "REDIS_URL")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny random checkpoint once."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def home() -> Iterator[Path]:
    """Return an empty data folder, with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="pb") as folder:
        yield Path(folder)


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return our environment without settings of ours but the data folder and `extra`; one thread for the tensors."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return clean | {"PERSONABOT_DATA_DIR": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def personabot(
    *arguments: str | Path, home: Path, stdin: str = "", timeout_s: float = 120, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, from an empty working directory."""
    return subprocess.run(
        [sys.executable, "-m", "personabot", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=home,
        env=environment(home, **extra),
        timeout=timeout_s,
        check=False,
    )
