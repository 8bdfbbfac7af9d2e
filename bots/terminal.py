"""The terminal chat: commands, turns and the loop between a person and whoever answers.

Owns what the person sees and types. Must not know the model or the queue: a `Partner` answers.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pydantic import ValidationError

from personas.catalogue import Catalogue
from personas.errors import UnknownPersona
from personas.persona import GenerationSettings, Persona
from worker.queue.reply import Reply, Tell


class Partner(Protocol):
    """Whoever answers: the model in this process, or the one behind the queue."""

    @property
    def persona(self) -> Persona: ...
    @property
    def settings(self) -> GenerationSettings: ...
    @property
    def num_turns(self) -> int: ...
    def say(self, text: str, tell: Tell | None = None) -> Reply: ...
    def regenerate(self, tell: Tell | None = None) -> Reply | None: ...
    def reset(self) -> None: ...
    def become(self, persona: Persona) -> None: ...
    def tune(self, settings: GenerationSettings) -> None: ...


class Screen(Protocol):
    """Where the chat is read from and shown. `read` raises EOFError at the end of the input.

    While somebody is `waiting` for `name` to speak, the pieces of the reply go to what that yields, if to anything;
    `bot` shows the whole afterwards.
    """

    def read(self) -> str: ...
    def bot(self, name: str, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def waiting(self, name: str) -> AbstractContextManager[Tell | None]: ...


class Record(Protocol):
    """Where a chat is written down."""

    def begin(self, persona: Persona) -> None: ...
    def add(self, persona: Persona, prompt: str, reply: Reply) -> None: ...


class NoRecord:
    """Writes nothing down."""

    def begin(self, persona: Persona) -> None:
        """Do nothing."""

    def add(self, persona: Persona, prompt: str, reply: Reply) -> None:
        """Do nothing."""


@dataclass
class Chat:
    """One person at one screen."""

    partner: Partner
    screen: Screen
    catalogue: Catalogue
    record: Record = field(default_factory=NoRecord)
    administer: Callable[[str], str] | None = None
    is_over: bool = field(default=False, init=False)
    _last_prompt: str = field(default="", init=False)

    def run(self) -> None:
        """Greet, then read and answer until the person leaves or the input ends."""
        self._greet()
        while not self.is_over:
            try:
                text = self.screen.read().strip()
            except EOFError:
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._say(text)

    def _greet(self) -> None:
        persona = self.partner.persona
        self.record.begin(persona)
        if self.partner.num_turns:
            self.screen.note(f"{persona.name} remembers your conversation; /reset begins a new one.")
            return
        if persona.greeting:
            self.screen.bot(persona.name, persona.greeting)
        else:
            self.screen.note(f"You are talking to {persona.name}.")

    def _say(self, text: str) -> None:
        self._last_prompt = text
        self._answer(lambda tell: self.partner.say(text, tell))

    def _answer(self, ask: Callable[[Tell | None], Reply | None]) -> None:
        try:
            with self.screen.waiting(self.partner.persona.name) as tell:
                reply = ask(tell)
        except KeyboardInterrupt:
            self.screen.note("Stopped waiting for the reply.")
            return
        if reply is None:
            self.screen.note("There is no reply to say differently yet.")
            return
        self.screen.bot(self.partner.persona.name, reply.text)
        self.record.add(self.partner.persona, self._last_prompt, reply)

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        command = COMMANDS.get(name.casefold())
        if command is None:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean /{close[0]}?" if close else "/help lists what there is."
            self.screen.note(f"There is no command /{name}. {hint}")
            return
        command.run(self, argument.strip())

    def show_help(self, _argument: str) -> None:
        """List the commands."""
        for name, command in COMMANDS.items():
            if not command.is_alias:
                usage = f"/{name} {command.usage}".strip()
                self.screen.note(f"{usage:<26}  {command.help}")

    def change_persona(self, name: str) -> None:
        """Show who speaks and who else there is, or let another take over."""
        if not name:
            persona = self.partner.persona
            self.screen.note(f"{persona.name}: {' '.join(persona.facts)}")
            self.screen.note(f"Others: {', '.join(n for n in self.catalogue.names() if n != persona.name)}")
            return
        try:
            self.partner.become(self.catalogue.get(name))
        except UnknownPersona as error:
            self.screen.note(str(error))
            return
        self._greet()

    def reset(self, _argument: str) -> None:
        """Forget the conversation."""
        self.partner.reset()
        self.screen.note("Forgotten. A new conversation begins.")
        self._greet()

    def regenerate(self, _argument: str) -> None:
        """Answer the last message again."""
        self._answer(self.partner.regenerate)

    def change_settings(self, argument: str) -> None:
        """Show the sampling settings, or change one of them; `default` unsets it."""
        if argument:
            try:
                self.partner.tune(changed_settings(self.partner.settings, argument))
            except ValueError as error:
                self.screen.note(str(error))
                return
        shown = shown_settings(self.partner.settings)
        self.screen.note(f"Set here: {shown or 'nothing'}; the rest comes from the persona and the model.")

    def ask_workshop(self, argument: str, *, name: str) -> None:
        """Give a command about training and checkpoints, where there is somebody to carry it out."""
        here = self.administer
        self.screen.note(here(f"{name} {argument}") if here else "That works in `personabot up`, where the queue is.")

    def quit(self, _argument: str) -> None:
        """Leave."""
        self.is_over = True


def shown_settings(settings: GenerationSettings) -> str:
    """Return what is set, in the words that `changed_settings` takes."""
    given = settings.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in given.items())


def changed_settings(settings: GenerationSettings, argument: str) -> GenerationSettings:
    """Return `settings` with the change that `argument` asks for, such as "temperature 0.7" or "top_k default"."""
    match = re.fullmatch(r"([\w-]+)(?:\s*=\s*|\s+)(.+)", argument.strip())
    name, given = match.groups() if match else ("", "")
    name = name.replace("-", "_").casefold()
    names = list(GenerationSettings.model_fields)
    if name not in names:
        raise ValueError(f"Usage: /settings NAME VALUE, where NAME is one of {', '.join(names)}.")
    value = None if given.casefold() == "default" else given
    try:
        return GenerationSettings.model_validate({**settings.model_dump(), name: value})
    except ValidationError as error:
        raise ValueError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None


@dataclass(frozen=True, slots=True)
class Command:
    """A word after a slash."""

    run: Callable[[Chat, str], None]
    help: str
    usage: str = ""
    is_alias: bool = False


COMMANDS = {
    "persona": Command(Chat.change_persona, "show who speaks, or let another persona take over", "[NAME]"),
    "regenerate": Command(Chat.regenerate, "answer the last message again, differently"),
    "reset": Command(Chat.reset, "forget this conversation and begin a new one"),
    "settings": Command(Chat.change_settings, "show or change how replies are sampled", "[NAME VALUE]"),
    "retrain": Command(partial(Chat.ask_workshop, name="retrain"), "train a new version", "start|status|cancel|list"),
    "model": Command(
        partial(Chat.ask_workshop, name="model"), "checkpoints", "list|show|use|unvoice|promote|rollback|compare"
    ),
    "status": Command(partial(Chat.ask_workshop, name="status"), "who is at work, on what, and what waits"),
    "help": Command(Chat.show_help, "show this list"),
    "quit": Command(Chat.quit, "leave (also Ctrl-D)"),
    "exit": Command(Chat.quit, "leave", is_alias=True),
}
