"""Every command a person can give, and the one way in which any of them is carried out.

Platforms render these as slash commands or as text commands with keyboards; nothing here knows a platform.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import redis
import structlog

from bots.command import Caller, Command, Permission, Response
from bots.model_commands import MODEL_COMMANDS
from bots.persona_commands import MAX_SUGGESTIONS, PERSONA_COMMANDS, START
from bots.retrain import RETRAIN_COMMANDS
from bots.services import Services
from personas.store import MAX_TURNS
from worker.queue.errors import QueueUnavailable

__all__ = ["COMMANDS", "MAX_SUGGESTIONS", "find", "may_use", "pressed", "run"]

log = structlog.get_logger(__name__)


async def run(services: Services, command: Command, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Check the permission, then run the command; whatever goes wrong becomes one log line and a polite answer."""
    if not may_use(services, command, caller):
        log.warning("command refused", command=command.name, by=caller.user, conversation=str(caller.conversation))
        # To strangers an administrator's command says nothing, not even that it exists.
        why = f"Only moderators may use /{command.name} here."
        return Response(why if command.permission is Permission.MODERATOR else UNKNOWN, is_private=True)
    for option in command.options:
        if option.is_required and not arguments.get(option.name, "").strip():
            return Response(f"Usage: {command.usage}", is_private=True)
    try:
        return await command.run(services, caller, arguments)
    except (redis.RedisError, QueueUnavailable) as error:
        log.warning("command not possible", command=command.name, error=repr(error))
        return Response(UNAVAILABLE, is_private=True)
    except Exception:
        log.exception("command failed", command=command.name, conversation=str(caller.conversation))
        return Response(FAILED, is_private=True)


def may_use(services: Services, command: Command, caller: Caller) -> bool:
    """Say whether the caller has the command's permission."""
    if command.permission is Permission.ADMIN:
        return caller.user in services.admins
    return command.permission is Permission.EVERYONE or caller.is_moderator


def find(name: str) -> Command | None:
    """Return the command of that name, or None."""
    return next((command for command in COMMANDS if command.name == name), None)


def pressed(data: str) -> tuple[Command, dict[str, str]] | None:
    """Return the command and arguments of a pressed button, or None if it is none of ours."""
    name, separator, argument = data.partition("|")
    command = find(name)
    if command is None or not separator:
        return None
    return command, {command.options[0].name: argument} if command.options and argument else {}


async def show_help(services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """List the commands and how to be heard."""
    how = (
        "Mention me or reply to one of my messages, and I answer." if caller.is_group else "Write to me, and I answer."
    )
    lines = [how, ""]
    for command in COMMANDS:
        if command.is_listed and (command.permission is not Permission.ADMIN or may_use(services, command, caller)):
            note = " (moderators)" if command.permission is Permission.MODERATOR and caller.is_group else ""
            lines.append(f"{command.usage}: {command.help}{note}")
    return Response("\n".join(lines), is_private=True)


async def show_privacy(_services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Say what is stored and what for."""
    return Response(PRIVACY, is_private=True)


UNAVAILABLE: Final = "I cannot reach my memory at the moment. Please try that again in a minute."
FAILED: Final = "Sorry, something went wrong on my side."
UNKNOWN: Final = "That command is not for you."
PRIVACY: Final = (
    "What I keep: the messages you address to me in this conversation, with your display name and id, and my "
    f"replies, so that I can follow the conversation (the newest {MAX_TURNS} at most), and which persona was chosen "
    "here. Message ids are remembered for a day so that nothing is answered twice.\n"
    "What I do not keep: anything that is not addressed to me.\n"
    "What it is used for: answering here. Nothing said here becomes training data, and nothing is passed on.\n"
    "/reset erases this conversation. For everything else, ask whoever runs this bot."
)

COMMANDS: Final[tuple[Command, ...]] = (
    *PERSONA_COMMANDS,
    Command("help", "how to talk to me", show_help, is_private=True),
    Command("privacy", "what I keep and what for", show_privacy, is_private=True),
    START,
    *RETRAIN_COMMANDS,
    *MODEL_COMMANDS,
)
