"""What errors of torch mean for the requests of a step: too little memory, or a device that is lost."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left; on a CPU torch has no class for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).casefold()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_beyond_repair(error: BaseException) -> bool:
    """Tell whether the device computes nothing any more in this process, as after an illegal access on a GPU."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
