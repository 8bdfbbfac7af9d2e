"""The errors of the queue.

PersonabotError
└── QueueError
    ├── NoServer           the embedded server cannot run here, or did not start
    └── QueueUnavailable   Redis did not take a message in time; it was not accepted
"""

from personas.errors import PersonabotError


class QueueError(PersonabotError):
    """Something about Redis or the queue in it."""


class NoServer(QueueError):
    """The embedded server cannot run here, or did not start."""


class QueueUnavailable(QueueError):
    """Redis did not take a message in time; it was not accepted."""
