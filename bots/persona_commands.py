"""The commands about who speaks and what is remembered: each by name, options, permission, help and what it does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from bots.command import Button, Caller, Command, Option, Permission, Response
from bots.services import Services, greeting_turn, in_thread
from bots.speech import Speech
from personas.catalogue import UnknownPersona
from personas.conversation import Role, Turn
from personas.persona import Persona
from personas.store import MAX_TURNS
from worker.queue.message import Kind, Message

PAGE_SIZE: Final = 10
MAX_SUGGESTIONS: Final = 25  # Discord's limit
_DIGEST_MARK: Final = "#"


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


_NAME = Option("name", "the persona's name", suggest=suggest_personas)
_PAGE = Option("page", "which page of the list", is_required=False)

PERSONA_COMMANDS: Final[tuple[Command, ...]] = (
    Command("persona show", "who speaks here", show_persona, is_private=True),
    Command("persona list", "everyone you can talk to", list_personas, (_PAGE,), is_private=True),
    Command("persona set", "let a persona take over", set_persona, (_NAME,), Permission.MODERATOR),
    Command("reset", "forget this conversation and begin anew", reset, permission=Permission.MODERATOR),
    Command("regenerate", "say the last reply differently", regenerate, is_private=True),
)
START: Final = Command("start", "say hello", start, is_listed=False)
