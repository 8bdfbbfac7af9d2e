"""What everybody reads of a reply, whoever made it: the model in this process or the one behind the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tell = Callable[[str], None]  # is called with each piece of a reply as it comes


class Reply(Protocol):
    """What is said, and how to hear the same again."""

    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def model(self) -> str: ...
