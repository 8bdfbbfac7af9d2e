"""What a command is: name, options, permission, help, and what giving one and answering one consist of.

The commands themselves are in `persona_commands`, `retrain` and `model_commands`; nothing here knows a platform.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

from bots.services import Services
from bots.speech import Speech
from personas.conversation import Conversation


class Permission(StrEnum):
    """Who may use a command. In a private chat everybody is a moderator; administrators are named in the settings."""

    EVERYONE = "everyone"
    MODERATOR = "moderator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a command: what the platform says of it, and how to bring it here.

    `save` writes it to a path that does not exist yet, and takes no more than it is told.
    """

    name: str
    num_bytes: int
    save: Callable[[Path, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who gives a command, where, and with which file; `call_id` is the platform's id of this one call."""

    conversation: Conversation
    author_id: str
    author_name: str = ""
    is_moderator: bool = False
    is_group: bool = False
    call_id: str = ""
    attachment: Attachment | None = None

    @property
    def user(self) -> str:
        """The caller as settings name people: platform:id."""
        return f"{self.conversation.platform}:{self.author_id}"


@dataclass(frozen=True, slots=True)
class Button:
    """Gives a command when pressed. `data` fits into Telegram's 64 bytes."""

    label: str
    command: str
    argument: str = ""

    @property
    def data(self) -> str:
        """What the platform hands back when the button is pressed; invert with `pressed`."""
        return f"{self.command}|{self.argument}"


@dataclass(frozen=True, slots=True)
class Response:
    """What a command answers. A receipt is shown only where the platform demands some answer to a command.

    `replaces` asks to show the response in place of the message whose button was pressed.
    """

    text: str = ""
    speech: Speech | None = None
    buttons: tuple[tuple[Button, ...], ...] = ()
    is_private: bool = False
    is_receipt: bool = False
    replaces: bool = False
    awaits_reply: bool = False


Handler = Callable[[Services, Caller, Mapping[str, str]], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Option:
    """One argument of a command. Where there are several, people write name=value."""

    name: str
    help: str
    is_required: bool = True
    is_file: bool = False
    suggest: Callable[[Services, str], list[str]] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `name` has two words where it belongs to a group."""

    name: str
    help: str
    run: Handler
    options: tuple[Option, ...] = ()
    permission: Permission = Permission.EVERYONE
    is_private: bool = False
    is_listed: bool = field(default=True)

    @property
    def usage(self) -> str:
        """The command as a person types it."""
        names = [f"<{option.name}>" if option.is_required else f"[{option.name}]" for option in self.options]
        return " ".join([f"/{self.name}", *names])


# Of the machine, not of a conversation: only administrators may call it, and only they see the answer.
admin_command = partial(Command, permission=Permission.ADMIN, is_private=True)
