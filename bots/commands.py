"""Every command a person can give, each defined once: name, options, permission, help and what it does.

Platforms render these as slash commands or as text commands with keyboards; nothing here knows a platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import redis
import structlog

from bots.services import Services, greeting_turn, in_thread
from bots.speech import Speech
from personas.catalogue import UnknownPersona
from personas.conversation import Conversation, Role, Turn
from personas.persona import Persona
from personas.store import MAX_TURNS
from worker.queue.errors import QueueUnavailable
from worker.queue.message import Kind, Message

log = structlog.get_logger(__name__)

PAGE_SIZE: Final = 10
MAX_SUGGESTIONS: Final = 25  # Discord's limit
_DIGEST_MARK: Final = "#"


class Permission(StrEnum):
    """Who may use a command. In a private chat everybody is a moderator."""

    EVERYONE = "everyone"
    MODERATOR = "moderator"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who gives a command, and where; `call_id` is the platform's id of this one call."""

    conversation: Conversation
    author_id: str
    author_name: str = ""
    is_moderator: bool = False
    is_group: bool = False
    call_id: str = ""


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
    """One argument of a command."""

    name: str
    help: str
    is_required: bool = True
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


async def run(services: Services, command: Command, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Check the permission, then run the command; whatever goes wrong becomes one log line and a polite answer."""
    if not may_use(command, caller):
        return Response(f"Only moderators may use /{command.name} here.", is_private=True)
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


def may_use(command: Command, caller: Caller) -> bool:
    """Say whether the caller has the command's permission."""
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


async def show_persona(services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Describe who speaks here."""
    persona = await services.persona_of(caller.conversation)
    lines = [f"{persona.name} speaks here."]
    if persona.description:
        lines.append(persona.description)
    lines += [f"• {fact}" for fact in persona.facts]
    return Response("\n".join(lines), buttons=((Button("All personas", "persona list"),),), is_private=True)


async def list_personas(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Show one page of the catalogue with a button for every persona."""
    names = services.catalogue.names()
    num_pages = max(1, -(-len(names) // PAGE_SIZE))
    wanted = arguments.get("page", "").strip()
    page = min(max(int(wanted) if wanted.isdecimal() else 1, 1), num_pages)
    shown = [services.catalogue.get(name) for name in names[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]]
    current = await services.persona_of(caller.conversation)
    lines = [f"Personas ({page} of {num_pages}):" if num_pages > 1 else "Personas:"]
    lines += [_line(persona, is_current=persona.name == current.name) for persona in shown]
    lines.append("/persona set <name> lets one take over, with a fresh memory.")
    return Response("\n".join(lines), buttons=_list_buttons(shown, page, num_pages), is_private=True, replaces=True)


async def set_persona(services: Services, caller: Caller, arguments: Mapping[str, str]) -> Response:
    """Let a persona take over with an empty history and its greeting."""
    try:
        persona = _persona(services, arguments["name"])
    except UnknownPersona as error:
        return Response(str(error), is_private=True)
    if persona.name == (await services.persona_of(caller.conversation)).name and await _is_chosen(services, caller):
        return Response(f"{persona.name} is here already. /reset begins a new conversation.", is_private=True)
    await in_thread(services.store.set_persona, caller.conversation, persona.name, greeting_turn(persona))
    return Response(f"{persona.name} takes over here, with a fresh memory.", speech=_greeting(persona))


async def reset(services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Forget the conversation; the persona greets again."""
    persona = await services.persona_of(caller.conversation)
    await in_thread(services.store.reset, caller.conversation, greeting_turn(persona))
    return Response("Forgotten. A new conversation begins.", speech=_greeting(persona))


async def regenerate(services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Ask for another answer to the last message."""
    turns = await in_thread(services.store.history, caller.conversation, MAX_TURNS)
    if not any(turn.role is Role.USER for turn in turns):
        return Response("There is no reply to say differently yet.", is_private=True)
    asked = Turn(
        Role.USER, "", name=caller.author_name, author_id=caller.author_id, message_id=f"call:{caller.call_id}"
    )
    await services.publisher.submit(
        Message(caller.conversation, asked, services.deadline(), kind=Kind.REGENERATE, is_group=caller.is_group)
    )
    return Response("One moment: the last reply, differently.", is_private=True, is_receipt=True, awaits_reply=True)


async def start(services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Greet whoever opens a private chat; the greeting opens the history if there is none."""
    persona = await services.persona_of(caller.conversation)
    turn = greeting_turn(persona)
    if turn and not await in_thread(services.store.history, caller.conversation, 1):
        await in_thread(services.store.append, caller.conversation, turn)
    return Response("Write to me, and I answer. /help lists the commands.", speech=_greeting(persona))


async def show_help(_services: Services, caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """List the commands and how to be heard."""
    how = (
        "Mention me or reply to one of my messages, and I answer." if caller.is_group else "Write to me, and I answer."
    )
    lines = [how, ""]
    for command in COMMANDS:
        if command.is_listed:
            note = " (moderators)" if command.permission is Permission.MODERATOR and caller.is_group else ""
            lines.append(f"{command.usage}: {command.help}{note}")
    return Response("\n".join(lines), is_private=True)


async def show_privacy(_services: Services, _caller: Caller, _arguments: Mapping[str, str]) -> Response:
    """Say what is stored and what for."""
    return Response(PRIVACY, is_private=True)


def suggest_personas(services: Services, typed: str) -> list[str]:
    """Return the names that may be meant, at most what a platform shows."""
    return list(services.catalogue.search(typed, limit=MAX_SUGGESTIONS))[:MAX_SUGGESTIONS]


def digest(name: str) -> str:
    """Return a short stand-in for a persona's name that fits into a button on every platform."""
    return _DIGEST_MARK + hashlib.sha256(name.casefold().encode()).hexdigest()[:16]


def _persona(services: Services, name: str) -> Persona:
    if name.startswith(_DIGEST_MARK):
        name = next((known for known in services.catalogue.names() if digest(known) == name), name)
    return services.catalogue.get(name.strip())


async def _is_chosen(services: Services, caller: Caller) -> bool:
    return bool((await in_thread(services.store.settings, caller.conversation)).persona)


def _greeting(persona: Persona) -> Speech | None:
    return Speech(persona.name, persona.greeting) if persona.greeting else None


def _line(persona: Persona, *, is_current: bool) -> str:
    about = f": {persona.description}" if persona.description else ""
    return f"{'▸' if is_current else '•'} {persona.name}{about}"


def _list_buttons(shown: list[Persona], page: int, num_pages: int) -> tuple[tuple[Button, ...], ...]:
    buttons = [Button(persona.name, "persona set", digest(persona.name)) for persona in shown]
    rows = [tuple(buttons[index : index + 2]) for index in range(0, len(buttons), 2)]
    turning = []
    if page > 1:
        turning.append(Button("◀", "persona list", str(page - 1)))
    if page < num_pages:
        turning.append(Button("▶", "persona list", str(page + 1)))
    # Discord takes five rows of five, so the arrows join the last row of names.
    if turning and rows:
        rows[-1] = (*rows[-1], *turning)
    return tuple(rows)


UNAVAILABLE: Final = "I cannot reach my memory at the moment. Please try that again in a minute."
FAILED: Final = "Sorry, something went wrong on my side."
PRIVACY: Final = (
    "What I keep: the messages you address to me in this conversation, with your display name and id, and my "
    f"replies, so that I can follow the conversation (the newest {MAX_TURNS} at most), and which persona was chosen "
    "here. Message ids are remembered for a day so that nothing is answered twice.\n"
    "What I do not keep: anything that is not addressed to me.\n"
    "What it is used for: answering here. Nothing said here becomes training data, and nothing is passed on.\n"
    "/reset erases this conversation. For everything else, ask whoever runs this bot."
)

_NAME = Option("name", "the persona's name", suggest=suggest_personas)
_PAGE = Option("page", "which page of the list", is_required=False)

COMMANDS: Final[tuple[Command, ...]] = (
    Command("persona show", "who speaks here", show_persona, is_private=True),
    Command("persona list", "everyone you can talk to", list_personas, (_PAGE,), is_private=True),
    Command("persona set", "let a persona take over", set_persona, (_NAME,), Permission.MODERATOR),
    Command("reset", "forget this conversation and begin anew", reset, permission=Permission.MODERATOR),
    Command("regenerate", "say the last reply differently", regenerate, is_private=True),
    Command("help", "how to talk to me", show_help, is_private=True),
    Command("privacy", "what I keep and what for", show_privacy, is_private=True),
    Command("start", "say hello", start, is_listed=False),
)
