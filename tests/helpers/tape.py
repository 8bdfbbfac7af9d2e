"""Records operations as a CUDA graph does: which, on which tensors, with which numbers. A replay runs only them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from worker.engine.graphs import Outputs


class Tape(TorchDispatchMode):
    """Runs what happens inside of it, and remembers it. Tensors that were made outside are not kept alive by it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], Any, Any]] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(self._noted, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self._made |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        self._calls.append((func, given, result))
        return result

    def _noted(self, leaf: object) -> object:
        return weakref.ref(leaf) if isinstance(leaf, Tensor) and id(leaf) not in self._made else leaf

    def replay(self) -> None:
        """Do the same again: results go where they went."""
        for func, given, result in self._calls:
            args, kwargs = tree_map(_held, given)
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


def _held(leaf: object) -> object:
    if not isinstance(leaf, weakref.ref):
        return leaf
    tensor = leaf()
    assert tensor is not None, "a replay reads a tensor that is gone"
    return tensor


def record(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """Record `compute`, in the form that the engine asks for."""
    with Tape() as tape:
        outputs = compute()
    return outputs, tape.replay
