"""SIGTERM and Ctrl-C during a run: noted, so that the step in hand is finished and saved. Knows nothing of training."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Interruption:
    """While entered, notes the first of the signals; a Ctrl-C after that raises `KeyboardInterrupt` at once."""

    number: int = 0
    _previous: dict[signal.Signals, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit status of a run that ends by it, here or in another process of the run."""
        return 128 + (self.number or signal.SIGTERM)

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
