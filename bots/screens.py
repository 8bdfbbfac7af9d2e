"""The two faces of the terminal chat: coloured with line editing at a terminal, plain text through a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from bots.terminal import COMMANDS
from worker.queue.reply import Tell

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Drop control characters, so that no reply can steer the terminal."""
    return _CONTROL.sub("", text)


class PlainScreen:
    """Lines in, lines out: what a pipe or a file gets."""

    def __init__(self, source: TextIO | None = None, out: TextIO | None = None) -> None:
        self._source = source or sys.stdin
        self._out = out or sys.stdout

    def read(self) -> str:
        """Return the next line."""
        line = self._source.readline()
        if not line:
            raise EOFError
        return line

    def bot(self, name: str, text: str) -> None:
        """Write a bot turn, at once."""
        self._write(f"{name}: {printable(text)}")

    def note(self, text: str) -> None:
        """Write what is not part of the conversation."""
        self._write(f"({text})")

    def waiting(self, name: str) -> AbstractContextManager[Tell | None]:
        """Show nothing before the reply is complete."""
        return nullcontext()

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


class RichScreen:
    """Colours, line editing, history across sessions, completion of commands and persona names."""

    def __init__(
        self, *, history_file: Path, persona_names: Iterable[str], waiting_for: Callable[[], str] = lambda: "thinking"
    ) -> None:
        self._console = Console()
        self._waiting_for = waiting_for
        history_file.parent.mkdir(parents=True, exist_ok=True)
        history_file.touch(mode=0o600)
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history_file)),
            auto_suggest=AutoSuggestFromHistory(),
            completer=ChatCompleter(persona_names),
            complete_while_typing=True,
        )

    def read(self) -> str:
        """Return what the person typed; Ctrl-C drops the line, and leaves when the line is empty."""
        while True:
            try:
                with patch_stdout(raw=True):  # what other threads print meanwhile goes above the prompt
                    return self._session.prompt(HTML("<b><ansicyan>you</ansicyan></b>: "))
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise EOFError from None

    def bot(self, name: str, text: str) -> None:
        """Show a bot turn."""
        self._console.print(_turn(name, text))

    def note(self, text: str) -> None:
        """Show what is not part of the conversation."""
        self._console.print(Text(printable(text), style="dim"))

    @contextmanager
    def waiting(self, name: str) -> Iterator[Tell]:
        """Show that a reply is on its way, then what has come of it; both give way to the whole."""
        spinner = Spinner("dots", Text(f"{self._waiting_for()} …", style="dim"))
        with Live(spinner, console=self._console, transient=True) as live:
            told = ""

            def tell(piece: str) -> None:
                nonlocal told
                told += piece
                live.update(_turn(name, told), refresh=True)

            yield tell


def _turn(name: str, text: str) -> Text:
    return Text.assemble((f"{name}: ", "bold magenta"), printable(text))


class ChatCompleter(Completer):
    """Completes commands, and persona names behind /persona."""

    def __init__(self, persona_names: Iterable[str]) -> None:
        self._names = tuple(persona_names)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Offer what fits the text before the cursor."""
        text = document.text_before_cursor
        if text.startswith("/persona "):
            typed = text.removeprefix("/persona ")
            yield from self._matching(typed, self._names)
        elif text.startswith("/") and " " not in text:
            yield from self._matching(text[1:], COMMANDS)

    @staticmethod
    def _matching(typed: str, words: Iterable[str]) -> Iterable[Completion]:
        for word in words:
            if word.casefold().startswith(typed.casefold()):
                yield Completion(word, start_position=-len(typed))
