"""The next-utterance head of a checkpoint: which of several replies is the right one, told by the state at its end.

Reads it, and ranks by it. What it is trained by is `trainer.choice`'s business; the engine computes the states.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch
from safetensors import safe_open
from torch import Tensor, nn

from personas.errors import CheckpointError
from worker.engine.errors import EngineError
from worker.engine.loop import EngineLoop
from worker.engine.request import Request

log = structlog.get_logger(__name__)

PREFIX = "multiple_choice_head."  # as in GPT2DoubleHeadsModel
PATIENCE_S = 10.0  # of a reply without a deadline, too


def load_head(folder: Path) -> nn.Linear | None:
    """Read the next-utterance head of a checkpoint, its own file or the weights'; None where it has none.

    Raises `CheckpointError` for a file of weights that cannot be read.
    """
    # Where there are safetensors nobody reads other forms, which may be git pointers without their files.
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for path in paths:
        try:
            head = _from_bin(path) if path.suffix == ".bin" else _from_safetensors(path)
        except Exception as error:  # whatever a damaged file makes the readers raise
            raise CheckpointError(f"{path} can't be read as weights. Copy the whole folder again.") from error
        if head is not None:
            return head
    return None


def _from_safetensors(path: Path) -> nn.Linear | None:
    with safe_open(path, framework="pt") as file:
        return _head(file.get_tensor) if f"{PREFIX}summary.weight" in file.keys() else None  # noqa: SIM118


def _from_bin(path: Path) -> nn.Linear | None:
    """The form of the ancestors' checkpoints; of what torch wrote before 2020 all is read, else the head alone."""
    tensors = torch.load(path, weights_only=True, mmap=zipfile.is_zipfile(path), map_location="cpu")
    return _head(tensors.__getitem__) if f"{PREFIX}summary.weight" in tensors else None


def _head(tensor: Callable[[str], Tensor]) -> nn.Linear:
    weight, bias = (tensor(f"{PREFIX}summary.{name}").float() for name in ("weight", "bias"))
    head = nn.Linear(weight.shape[1], 1).requires_grad_(False)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


class HeadRanker:
    """Lets the engine's model score candidates by its head. The prompt they share is not computed again."""

    def __init__(self, engine: EngineLoop) -> None:
        self._engine = engine

    def scores(
        self, sequences: Sequence[Sequence[int]], *, ends: float | None = None, group: tuple[str, str] = ("", "")
    ) -> list[float]:
        """Return a logit for each prompt with its whole reply, in ids; none is better where the engine has no time."""
        longest = self._engine.window - 1
        timeout_s = PATIENCE_S if ends is None else min(PATIENCE_S, ends - time.monotonic())
        try:
            requests = [
                Request(prompt_ids=tuple(ids[:longest]), wants_fit=True, timeout_s=timeout_s, group=group)
                for ids in sequences
            ]
            completions = [future.result() for future in [self._engine.submit(request) for request in requests]]
        except EngineError as error:
            log.warning("candidates were not ranked by the head", num_candidates=len(sequences), why=str(error))
            return [0.0] * len(sequences)
        return [completion.fit or 0.0 for completion in completions]
