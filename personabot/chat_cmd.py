"""`personabot chat`: one person and one model in one process.

The model loads in the background, so that the person can type at once.
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
from personas.logs import configure_logging, log_path
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
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


def chat(settings: Settings, options: ChatOptions) -> None:
    """Talk in the terminal, through a pipe, or from a file of prompts."""
    prompts = read_prompts(options.prompt_file) if options.prompt_file else None
    catalogue = load_catalogue(settings.personas_dir)
    persona = catalogue.get(options.persona or settings.default_persona or catalogue.names()[0])
    configure_logging(settings, "chat", log_path(settings, "chat"))  # the terminal is for the conversation
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(Transcript(options.output_file)) if options.output_file else NoRecord()
        model = stack.enter_context(
            BackgroundModel(settings.model_copy(update={"model": settings.model or persona.checkpoint or ""}))
        )
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
    """A model that a thread loads and keeps; `speak` waits for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._speaker: Future[Responder] = Future()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def is_loaded(self) -> bool:
        """Tell whether `speak` would answer without waiting for the model."""
        return self._speaker.done()

    def speak(
        self, persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None
    ) -> Reply:
        """Answer as `persona`, telling each piece as it comes; raises what the loading raised."""
        return self._speaker.result().respond(persona, turns, settings, stream=tell)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self.is_loaded():  # who leaves before does not wait for it
            self._thread.join()

    def _run(self) -> None:
        try:
            from worker.respond import start_responder

            with start_responder(self._settings) as speaker:
                self._speaker.set_result(speaker)
                self._is_over.wait()
        except BaseException as error:  # it belongs to whoever waits for the model
            if not self._speaker.done():
                self._speaker.set_exception(error)
