"""A real worker process for tests, and waiting for what it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

# Long, because the machine may be busy; a test that passes does not wait.
PATIENCE_S = 60.0
WORKER = (sys.executable, "-m", "worker.process")


def wait_until(condition: Callable[[], object], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as `condition` holds; fail when it never does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain until {what}"
        time.sleep(0.02)


@contextmanager
def worker_process(
    url: str, model: Path, *, command: tuple[str, ...] = WORKER, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker at `url`; it is killed when the block ends, if it still runs."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PERSONABOT_")}
    settings = {
        "REDIS_URL": url,
        "PERSONABOT_MODEL": str(model),
        "PERSONABOT_DEVICE": "cpu",
        "PERSONABOT_LEASE_S": "6",  # who kills a worker, and waits for its lease to end, gives it less
        "OMP_NUM_THREADS": "1",
    }
    with TemporaryDirectory() as home:
        process = subprocess.Popen(command, env=own | {"PERSONABOT_DATA_DIR": home} | settings | environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
