"""How a promotion and a rollback go while people talk: times, memory, replies.

    python -m benchmarks.swap [MODEL] [--conversations 4]

The model is added to a registry of its own once more, so that both versions give the same replies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.logs import keep_output_clean
from personas.persona import GenerationSettings
from personas.registry import Registry, Version
from personas.settings import Settings
from worker.loading import find_model
from worker.memory import model_bytes
from worker.models import ModelPool

CALM_S = 3.0  # of talk before and after the changes
SHORT = GenerationSettings(max_new_tokens=16)
MIB = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-persona")
    parser.add_argument("--conversations", type=int, default=4)
    options = parser.parse_args()
    keep_output_clean("")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), model=options.model, device="cpu")
        registry = Registry.of(settings)
        found = find_model(options.model, registry)
        if not isinstance(found.place, Path):
            raise SystemExit(f"{options.model}: expected a folder or a shipped model")
        again = registry.add(found.place, options.model).reference
        counted = model_bytes(found, device="cpu", dtype="auto")
        print(f"weights as counted: {counted / MIB:.0f} MB")
        before, started = resident(), time.perf_counter()
        with ModelPool(settings) as pool:
            print(f"first load: {time.perf_counter() - started:.1f} s, {(resident() - before) / MIB:.0f} MB resident")
            talk(pool, registry, again, options)


def talk(pool: ModelPool, registry: Registry, reference: str, options: argparse.Namespace) -> None:
    """Let people talk while the model is promoted, rolled back and promoted again."""
    is_over = threading.Event()
    persona = load_catalogue(None).get("Agnes Thorne")

    def converse(number: int) -> list[float]:
        took = []
        while not is_over.is_set():
            started = time.perf_counter()
            pool.respond(persona, [Turn(Role.USER, f"Hello {number}, how are you?")], SHORT)
            took.append(time.perf_counter() - started)
        return took

    with ThreadPoolExecutor(options.conversations) as executor:
        talks = [executor.submit(converse, number) for number in range(options.conversations)]
        try:
            time.sleep(CALM_S)
            changed(pool, "promotion", lambda: registry.promote(reference))
            changed(pool, "rollback", lambda: registry.rollback(options.model))
            changed(pool, "promotion again", lambda: registry.promote(reference))
            time.sleep(CALM_S)
        finally:
            is_over.set()
        took = sorted(seconds for talk in talks for seconds in talk.result())
    print(f"{len(took)} replies, p50 {statistics.median(took):.2f} s, slowest {took[-1]:.2f} s")


def changed(pool: ModelPool, name: str, change: Callable[[], Version]) -> None:
    """Time a change until its version answers."""
    before, started = resident(), time.perf_counter()
    reference = change().reference
    while not any(state.is_default and state.reference == reference for state in pool.loaded()):
        time.sleep(0.02)
    print(f"{name}: {time.perf_counter() - started:.1f} s, {(resident() - before) / MIB:+.0f} MB resident")


def resident() -> int:
    """Return the bytes of memory that this process has (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


if __name__ == "__main__":
    main()
