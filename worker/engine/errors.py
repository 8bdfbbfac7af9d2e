"""What can become of a request besides a completion.

PersonabotError
└── EngineError
    ├── RequestRefused       the request can never run: no prompt, unknown ids, longer than the window
    ├── EngineBusy           as many requests wait as may wait
    ├── EngineStopped        the engine was stopped, or has died
    ├── DeadlinePassed       the request's time was over before its first token
    └── GenerationFailed     the model raised an error, or gave no finite score
"""

import torch

from personas.errors import PersonabotError


class EngineError(PersonabotError):
    """A request got no completion."""


class RequestRefused(EngineError):
    """The request can never run."""


class EngineBusy(EngineError):
    """As many requests wait as may wait."""


class EngineStopped(EngineError):
    """The engine was stopped, or has died."""


class DeadlinePassed(EngineError):
    """The request's time was over before its first token."""


class GenerationFailed(EngineError):
    """The model raised an error, or gave no finite score."""


def first_line(error: BaseException) -> str:
    """What an error says, without the advice and addresses that follow in torch's."""
    return (str(error).strip().splitlines() or [repr(error)])[0].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left; on a CPU torch has no class for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).casefold()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_beyond_repair(error: BaseException) -> bool:
    """Tell whether the device computes nothing any more in this process, as after an illegal access on a GPU."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
