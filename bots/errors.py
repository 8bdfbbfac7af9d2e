"""The errors of the adapters.

PersonabotError
└── AdapterError
    ├── TokenMissing    no token was given
    └── TokenRefused    the platform does not know the token, or refuses what it is to be used for
"""

from personas.errors import PersonabotError


class AdapterError(PersonabotError):
    """An adapter cannot run."""

    exit_status = 2


class TokenMissing(AdapterError):
    """No token was given."""


class TokenRefused(AdapterError):
    """The platform does not know the token, or refuses what it is to be used for."""
