"""A worker for adapter tests: the real mailbox, tasks and outbox, with a scripted speaker in place of a model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from personas.catalogue import Catalogue
from personas.conversation import Conversation, Turn
from personas.persona import GenerationSettings, Persona
from worker.process import Casting
from worker.queue.connection import connect
from worker.queue.keys import CHAT_QUEUE
from worker.queue.mailbox import Mailbox
from worker.queue.pieces import telling
from worker.queue.reply import Tell
from worker.tasks import Replies, Speaker

NUM_THREADS = 4


@dataclass(frozen=True)
class Said:
    """A reply as the tasks read it."""

    text: str
    seed: int | None = 1
    model: str = "script"


def echo(persona: Persona, turns: Sequence[Turn]) -> str:
    """Say what was heard last."""
    return f"You said: {turns[-1].text}"


class Script:
    """Speaks by a function; `pause()` makes it think until `resume()`."""

    def __init__(self) -> None:
        self.say: Callable[[Persona, Sequence[Turn]], str] = echo
        self.heard: list[tuple[Persona, tuple[Turn, ...]]] = []
        self._may_speak = threading.Event()
        self._may_speak.set()

    def pause(self) -> None:
        self._may_speak.clear()

    def resume(self) -> None:
        self._may_speak.set()

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings,
        *,
        deadline: float | None = None,
        group: tuple[str, str] = ("", ""),
        stream: Tell | None = None,
    ) -> Said:
        self._may_speak.wait(60)
        self.heard.append((persona, tuple(turns)))
        return Said(self.say(persona, turns))


@contextmanager
def scripted_worker(url: str, catalogue: Catalogue, default_persona: str = "") -> Iterator[Script]:
    """Answer what is submitted at `url` by a script until the block ends."""
    script = Script()
    with answering_worker(url, script, catalogue, default_persona):
        try:
            yield script
        finally:
            script.resume()


@contextmanager
def answering_worker(url: str, speaker: Speaker, catalogue: Catalogue, default_persona: str = "") -> Iterator[None]:
    """Let `speaker` answer what is submitted at `url` until the block ends."""
    stopping = threading.Event()
    with closing(connect(url)) as client, telling(url) as teller:
        mailbox = Mailbox(client, worker="script")
        replies = Replies(mailbox, speaker, Casting(catalogue, default_persona).named, teller)

        def work() -> None:
            while not stopping.is_set():
                popped = cast("tuple[str, str] | None", client.brpop([CHAT_QUEUE], timeout=0.2))
                if popped:
                    conversation, fence = arguments(popped[1])
                    replies.answer(Conversation.parse(conversation), fence)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(NUM_THREADS)]
        mailbox.sweep()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()


def arguments(envelope: str) -> tuple[str, int]:
    """Return the conversation and the fence of a task as it lies in Celery's queue."""
    body: Any = json.loads(json.loads(envelope)["body"])
    conversation, fence = body[0]
    return conversation, int(fence)
