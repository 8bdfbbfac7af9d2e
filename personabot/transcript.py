"""Prompt files and output files of `personabot chat`. Knows their formats, not where replies come from."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from personas.errors import PersonabotError
from personas.persona import Persona
from worker.queue.reply import Reply


class TranscriptError(PersonabotError):
    """A prompt file cannot be read, or an output file cannot be written."""


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file (`-`: standard input), one a line, without empty lines."""
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise TranscriptError(
            f"{path}: {error.strerror}. --prompt-file takes a text file, one prompt a line."
        ) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TranscriptError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from None
    # Not splitlines(): it also splits at U+2028 and form feeds, which may stand within a prompt.
    prompts = [line.strip() for line in text.split("\n")]
    return [prompt for prompt in prompts if prompt]


class Transcript(AbstractContextManager["Transcript"]):
    """Collects replies beside the output file and takes its place when complete; JSON Lines where named `.jsonl`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._is_jsonl = path.suffix == ".jsonl"
        self._is_empty = True
        try:
            self._file = self._partial.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise TranscriptError(f"{path}: cannot be written: {error.strerror}.") from None

    def begin(self, persona: Persona) -> None:
        """Begin a conversation."""
        if self._is_jsonl:
            return
        if not self._is_empty:
            self._file.write("\n")
        self._is_empty = False
        self._file.write(f"# {persona.name}\n")
        if persona.greeting:
            self._file.write(f"{persona.name}: {persona.greeting}\n")

    def add(self, persona: Persona, prompt: str, reply: Reply) -> None:
        """Add one reply."""
        if self._is_jsonl:
            record = {
                "persona": persona.name,
                "prompt": prompt,
                "reply": reply.text,
                "model": reply.model,
                "seed": reply.seed,
            }
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            self._file.write(f"You: {prompt}\n{persona.name}: {reply.text}\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
