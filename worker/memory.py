"""How much memory a model will take and how much there is, before it is loaded. Reads headers, not tensors.

Beside weights there are caches, for which half of what is free is left. vLLM takes a fixed share of a GPU for both.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from pathlib import Path
from typing import Final

import torch

from personas.checkpoint import is_checkpoint, read_checkpoint
from personas.errors import PersonabotError
from personas.settings import Settings
from worker.device import choose_device, choose_dtype
from worker.engine.attempts import empty_caches
from worker.engine.vllm_engine import GPU_MEMORY_SHARE
from worker.loading import Found, base_of

GIB: Final = 2**30
UNKNOWN_FREE: Final = 8 * GIB  # where the system does not say
SHARE_OF_FREE: Final = 0.5
# On a CPU the engine keeps the weights a second time, packed (`engine.linear`).
CPU_COPIES: Final = 2
NUM_KERNELS: Final = 256


class NoRoom(PersonabotError):
    """A model does not fit the memory budget beside those that are in use. All figures in bytes."""

    def __init__(self, *, needed: int, used: int, budget: int) -> None:
        super().__init__(
            f"it needs {needed / GIB:.2f} GB beside {used / GIB:.2f} GB that are in use, and all models together may "
            f"take {budget / GIB:.2f} GB (setting model_memory_gb)"
        )


def memory_budget(settings: Settings) -> int:
    """Return the bytes that all models may take: what the settings say, or half of what is free now; all for vLLM."""
    share = 1.0 if _takes_share(settings) else SHARE_OF_FREE
    return int(settings.model_memory_gb * GIB) or int(free_memory(settings.device) * share)


def engine_bytes(found: Found, settings: Settings) -> int:
    """Return the bytes that a model counts for: vLLM's share of a GPU with its caches, else `model_bytes`."""
    if _takes_share(settings):
        return int(torch.cuda.mem_get_info(choose_device(settings.device)[0])[1] * GPU_MEMORY_SHARE)
    return model_bytes(found, device=settings.device, dtype=settings.dtype)


def _takes_share(settings: Settings) -> bool:
    return settings.engine == "vllm" and choose_device(settings.device)[0].type == "cuda"


def free_memory(device: str) -> int:
    """Return the bytes that are free where models are loaded: on the GPU, or in the machine without swapping."""
    chosen, _ = choose_device(device)
    if chosen.type == "cuda":
        return torch.cuda.mem_get_info(chosen)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return UNKNOWN_FREE


def keep_few_kernels() -> None:
    """Let oneDNN keep 256 kernels instead of 1,024, unless the operator's environment says how many.

    It has one for each product and number of rows, half a megabyte each, of which a decoding step needs a handful. To
    be called before anything is computed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(NUM_KERNELS))


def give_back() -> None:
    """Return to the system what unloaded models took: cycles keep weights alive, and glibc keeps what is freed.

    Six swaps of the default model took the process from 1.0 to 3.3 GB without this, and left it at 1.0 GB with it.
    """
    empty_caches()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def model_bytes(found: Found, *, device: str, dtype: str) -> int:
    """Return the bytes that a model's weights will take, without its caches; 0 for what is not on this machine."""
    chosen, _ = choose_device(device)
    itemsize = choose_dtype(chosen, dtype)[0].itemsize
    return num_weights(found.place) * itemsize * (CPU_COPIES if chosen.type == "cpu" else 1)


def num_weights(place: Path | str) -> int:
    """Return the number of weights in a folder, those of an adapter's base with it: merged, it adds none."""
    if not isinstance(place, Path):
        return 0
    if is_checkpoint(place) and (checkpoint := read_checkpoint(place)).kind == "adapter":
        return num_weights(base_of(checkpoint))
    return sum(map(_in_file, place.glob("*.safetensors"))) or sum(
        path.stat().st_size // 4 for path in place.glob("pytorch_model*.bin")
    )


def _in_file(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
