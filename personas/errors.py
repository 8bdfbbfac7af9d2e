"""The errors a person may cause and mend; whoever talks to that person shows the message and nothing else.

PersonabotError
├── CheckpointError      a checkpoint folder is missing something or damaged
├── LayoutError          a layout is unknown, or does not fit its tokenizer
├── SettingsError        a setting is unknown, or its value is not allowed
└── (each room adds its own below this root)
"""

from typing import ClassVar


class PersonabotError(Exception):
    """Says what is wrong, where, and what to do about it."""

    # What the process ends with; 2 says that trying again cannot help until somebody mends it.
    exit_status: ClassVar[int] = 1


class CheckpointError(PersonabotError):
    """A checkpoint folder is missing something or damaged."""

    exit_status = 2


class LayoutError(PersonabotError):
    """A layout is unknown, or does not fit its tokenizer."""

    exit_status = 2


class SettingsError(PersonabotError):
    """A setting is unknown, or its value is not allowed."""

    exit_status = 2
