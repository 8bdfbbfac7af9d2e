"""Records operations as a CUDA graph does: which, on which tensors, with which numbers. A replay runs only them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker.engine.graphs import Outputs


class Tape(TorchDispatchMode):
    """Runs what happens inside of it, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Do the same again: results go where they went."""
        for func, args, kwargs, result in self._calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def record(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """Record `compute`, in the form that the engine asks for."""
    with Tape() as tape:
        outputs = compute()
    return outputs, tape.replay
