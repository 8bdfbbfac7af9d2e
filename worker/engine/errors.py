"""What can become of a request besides a completion.

PersonabotError
└── EngineError
    ├── RequestRefused       the request can never run: no prompt, unknown ids, longer than the window
    ├── EngineBusy           as many requests wait as may wait
    ├── EngineStopped        the engine was stopped, or has died
    ├── DeadlinePassed       the request's time was over before its first token
    └── GenerationFailed     the model raised an error, or gave no finite score
"""

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
