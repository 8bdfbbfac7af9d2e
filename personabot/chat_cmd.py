"""`personabot chat`: one person and one model in one process.

The model loads in the background, so that the person can type at once. A persona that speaks with a checkpoint of its
own brings that along.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bots.partner import LocalPartner
from bots.screens import PlainScreen, RichScreen
from bots.terminal import Chat, NoRecord, Screen
from personabot.transcript import Transcript, read_prompts
from personas.catalogue import Catalogue, load_catalogue
from personas.conversation import Turn
from personas.errors import PersonabotError, RegistryError
from personas.logs import configure_logging, log_path
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry
from personas.settings import Settings
from personas.voices import checkpoint_of, speaks_with
from worker.queue.reply import Reply, Tell

if TYPE_CHECKING:
    from worker.respond import Responder


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the flags of `personabot chat` ask for beyond the settings."""

    persona: str = ""
    prompt_file: Path | None = None
    output_file: Path | None = None
    is_continued: bool = False
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    is_model_named: bool = False


def chat(settings: Settings, options: ChatOptions) -> None:
    """Talk in the terminal, through a pipe, or from a file of prompts."""
    prompts = read_prompts(options.prompt_file) if options.prompt_file else None
    catalogue = load_catalogue(settings.personas_dir)
    persona = catalogue.get(options.persona or settings.default_persona or catalogue.names()[0])
    configure_logging(settings, "chat", log_path(settings, "chat"))  # the terminal is for the conversation
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(Transcript(options.output_file)) if options.output_file else NoRecord()
        warn = PlainScreen(out=sys.stderr).note
        model = stack.enter_context(BackgroundModel(settings, persona, is_named=options.is_model_named, warn=warn))
        generation = options.generation
        partner = LocalPartner(model.speak, persona, settings=generation)
        if prompts is None:
            screen = screen_for(settings, catalogue, is_loaded=model.is_loaded)
            Chat(partner, screen, catalogue, record).run()
        else:
            # With an output file the transcript goes there, and standard output stays free for the progress.
            screen = PlainScreen()
            answer_all(partner, prompts, screen, record, is_continued=options.is_continued)
    if options.output_file:
        PlainScreen(out=sys.stderr).note(f"written: {options.output_file}")


def answer_all(
    partner: LocalPartner,
    prompts: Sequence[str],
    screen: Screen,
    record: Transcript | NoRecord,
    *,
    is_continued: bool,
) -> None:
    """Answer every prompt, each in a conversation of its own unless `is_continued`."""
    for position, prompt in enumerate(prompts):
        if position == 0 or not is_continued:
            partner.reset()
            record.begin(partner.persona)
        reply = partner.say(prompt)
        screen.bot("You", prompt)
        screen.bot(partner.persona.name, reply.text)
        record.add(partner.persona, prompt, reply)


def screen_for(settings: Settings, catalogue: Catalogue, *, is_loaded: Callable[[], bool]) -> Screen:
    """Return the screen that fits: coloured where a person sits at a terminal, plain otherwise."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainScreen()
    return RichScreen(
        history_file=settings.data_dir / "terminal_history",
        persona_names=catalogue.names(),
        waiting_for=lambda: "thinking" if is_loaded() else "loading the model",
    )


class BackgroundModel(contextlib.AbstractContextManager["BackgroundModel"]):
    """The model that speaks, loaded by a thread; `speak` waits for it.

    It is the one that `settings` name where that `is_named` for this chat. Else each persona speaks with its own, which
    takes the place of what spoke before, or where it has none, or none that can be loaded, with the default.
    """

    def __init__(
        self, settings: Settings, persona: Persona, *, is_named: bool = False, warn: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._is_named = is_named
        self._warn = warn
        self._has_warned = False
        self._reference = self._wanted(persona)
        self._speaker = self._loading(None)

    def is_loaded(self) -> bool:
        """Tell whether `speak` would answer without waiting for the model."""
        return self._speaker.done()

    def speak(
        self, persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None
    ) -> Reply:
        """Answer as `persona`, telling each piece as it comes; raises what the loading raised."""
        if (wanted := self._wanted(persona)) != self._reference:
            self._reference = wanted
            self._speaker = self._loading(self._speaker)
        return self._speaker.result().respond(persona, turns, settings, stream=tell)

    def __exit__(self, *_: object) -> None:
        if self.is_loaded():  # who leaves before does not wait for it
            _stop(self._speaker)

    def _wanted(self, persona: Persona) -> str:
        """Return the reference that `persona` is to speak with; where the voices can't be read, nobody has one."""
        if self._is_named:
            return ""
        try:
            return speaks_with(self._settings, persona)
        except RegistryError as error:
            if not self._has_warned:
                self._warn(f"{error} Until then no persona speaks with its voice.")
            self._has_warned = True
            return checkpoint_of(persona, {})

    def _loading(self, before: Future[Responder] | None) -> Future[Responder]:
        """Begin to load what is wanted, once `before` is gone."""
        speaker: Future[Responder] = Future()
        threading.Thread(target=self._load, args=(self._reference, speaker, before), name="model", daemon=True).start()
        return speaker

    def _load(self, reference: str, speaker: Future[Responder], before: Future[Responder] | None) -> None:
        try:
            if before is not None:
                _stop(before)
            speaker.set_result(self._started(reference))
        except BaseException as error:  # it belongs to whoever waits for the model
            speaker.set_exception(error)

    def _started(self, reference: str) -> Responder:
        from worker.respond import start_responder

        if reference:
            try:
                return start_responder(self._settings, model=reference)
            except PersonabotError as error:
                self._warn(f"{error} The default model speaks instead.")
        default = "" if self._is_named else Registry.of(self._settings).chosen() or ""
        return start_responder(self._settings, model=default)


def _stop(speaker: Future[Responder]) -> None:
    """Stop a model that was loaded, waiting for that; one that was not needs nothing."""
    with contextlib.suppress(Exception):
        speaker.result().stop()
