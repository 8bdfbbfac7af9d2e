"""Imports point one way, and what people install without the `worker` extra never asks for torch."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "tokenizers"}


def modules_of(*packages: str) -> list[str]:
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after importing `modules`."""
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_contracts_hold() -> None:
    # In a process of its own: import-linter disables every logger that exists.
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_importing_bots_loads_no_torch() -> None:
    assert not loaded_by("bots") & HEAVY


def test_every_module_of_bots_and_the_queue_loads_no_torch() -> None:
    modules = [*modules_of("bots"), *modules_of("worker/queue")]
    assert not loaded_by(*modules) & {"torch", "transformers", "peft"}


def test_personas_load_no_torch() -> None:
    assert not loaded_by(*modules_of("personas")) & {"torch", "transformers", "peft"}


def test_the_command_line_itself_loads_no_room() -> None:
    assert not loaded_by("personabot.cli") & {*HEAVY, "celery", "discord", "telegram", "bots", "worker", "trainer"}
