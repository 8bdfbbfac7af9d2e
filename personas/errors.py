"""The errors a person may cause and mend; whoever talks to that person shows the message and nothing else.

PersonabotError
├── CheckpointError      a checkpoint folder is missing something or damaged
├── CheckpointRefused    the gate refused a checkpoint, so it is not served
├── LayoutError          a layout is unknown, or does not fit its tokenizer
├── PersonaFileError     persona files have problems; all of them are listed
├── RegistryError        a checkpoint's name or version is unknown, or the registry can't be changed as asked
│   └── NoEarlierVersion a name has nothing to be rolled back to
├── SettingsError        a setting is unknown, or its value is not allowed
├── UnknownPersona       nobody in the catalogue has that name
└── (each room adds its own below this root)
"""

from collections.abc import Sequence
from typing import ClassVar


class PersonabotError(Exception):
    """Says what is wrong, where, and what to do about it."""

    # What the process ends with; 2 says that trying again cannot help until somebody mends it.
    exit_status: ClassVar[int] = 1


class CheckpointError(PersonabotError):
    """A checkpoint folder is missing something or damaged."""

    exit_status = 2


class CheckpointRefused(PersonabotError):
    """The gate refused a checkpoint, so it is not served."""

    exit_status = 2


class LayoutError(PersonabotError):
    """A layout is unknown, or does not fit its tokenizer."""

    exit_status = 2


class PersonaFileError(PersonabotError):
    """Persona files have problems; each is one line of the message: file, line, field, what was expected."""

    exit_status = 2

    def __init__(self, problems: Sequence[object]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class RegistryError(PersonabotError):
    """A checkpoint's name or version is unknown, or the registry can't be changed as asked."""

    exit_status = 2


class NoEarlierVersion(RegistryError):
    """A name has nothing to be rolled back to."""


class SettingsError(PersonabotError):
    """A setting is unknown, or its value is not allowed."""

    exit_status = 2


class UnknownPersona(PersonabotError):
    """Nobody in the catalogue has that name."""

    exit_status = 2

    def __init__(self, name: str, close: Sequence[str] = ()) -> None:
        # Read in a terminal and in chats alike, so that it names no command.
        hint = f"Did you mean {' or '.join(close)}?" if close else "The list of personas says who there is."
        shown = name if len(name) <= 60 else name[:57] + "..."
        super().__init__(f"There is no persona called {shown!r}. {hint}")
        self.name, self.close = name, tuple(close)
