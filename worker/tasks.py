"""The chat task: take what a conversation waits for, have it answered, deliver, go on or let go.

Owns the way from a claim to the outbox, and the one place where an unexpected error becomes one log line and one polite
notice. Knows nothing of how a reply is generated: that is the `speak` it is given.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

import redis
import structlog

from personas.conversation import Conversation, Role, Turn
from personas.persona import GenerationSettings, Persona
from worker.engine.errors import DeadlinePassed, EngineStopped
from worker.queue.app import app
from worker.queue.mailbox import Mailbox, Outcome
from worker.queue.message import EntryKind, Kind, OutboxEntry, Taken
from worker.queue.reply import Reply, Tell
from worker.queue.task import REPLY_TASK

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_TASK_S: Final = 30.0  # a task that held its conversation this long sends a new task for what is left
# Messages whose worker died are answered few at a time, so that the one that kills takes few others with it.
MAX_SUSPECTS: Final = 4
MAX_OUTAGE_S: Final = 60.0  # a finished reply waits this long for a Redis that is away

TOO_LATE: Final = "Sorry, I had too much to do and couldn't answer in time. Please say that again."
FAILED: Final = "Sorry, something went wrong on my side and I have no answer to that. Please try again."
BURIED: Final = "Sorry, that message made me stumble twice, so I am leaving it aside. Please put it in other words."
NOTHING_TO_REPEAT: Final = "There is nothing I could say differently yet: write me something first."


class Speaker(Protocol):
    """Says what `persona` says next, and meanwhile its pieces to `stream`.

    `deadline` is in Unix seconds, `group` is (server, conversation).
    """

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings,
        *,
        deadline: float | None = None,
        group: tuple[str, str] = ("", ""),
        stream: Tell | None = None,
    ) -> Reply: ...


class Replies:
    """Answers claimed conversations, many at once in as many threads."""

    def __init__(
        self,
        mailbox: Mailbox,
        speaker: Speaker,
        persona_named: Callable[[str], Persona],
        teller: Callable[[Taken], Tell | None] = lambda taken: None,
    ) -> None:
        self._mailbox = mailbox
        self._speaker = speaker
        self._persona_named = persona_named
        self._teller = teller
        self._held: dict[Conversation, int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._suspects = threading.BoundedSemaphore(MAX_SUSPECTS)

    def answer(self, conversation: Conversation, fence: int) -> None:
        """Answer what the claim `fence` stands for; a stale fence, such as that of a repeated task, does nothing."""
        started = time.monotonic()
        taken = _through_outage(lambda: self._mailbox.take(conversation, fence))
        while taken is not None:
            self._hold(taken)
            try:
                entry = self._entry(taken)
                takes_next = not self._stopping.is_set() and time.monotonic() - started < MAX_TASK_S
                outcome = self._finish(taken, entry, takes_next=takes_next)
            finally:
                self._let_go(taken)
            taken = outcome.next

    def stop(self) -> None:
        """Take nothing new: what waits is handed over to another worker, or to the next start."""
        self._stopping.set()

    def held(self) -> list[tuple[Conversation, int]]:
        """Return the claims that are being answered, for the heartbeat."""
        with self._lock:
            return list(self._held.items())

    def _entry(self, taken: Taken) -> OutboxEntry:
        """Return what to deliver; the one place where an unexpected error becomes a notice."""
        try:
            return self._reply(taken)
        except DeadlinePassed:
            return _notice(taken, TOO_LATE)
        except EngineStopped:
            raise  # no fault of the message: another worker, or this one started again, answers it
        except Exception:
            log.exception("reply failed", conversation=str(taken.conversation), fence=taken.fence)
            return _notice(taken, FAILED)

    def _reply(self, taken: Taken) -> OutboxEntry:
        if taken.is_poisonous:
            log.error("message killed its worker twice, set aside", conversation=str(taken.conversation))
            return _notice(taken, BURIED)
        if taken.deadline and time.time() > taken.deadline:
            log.warning("deadline passed", conversation=str(taken.conversation), fence=taken.fence)
            return _notice(taken, TOO_LATE)
        if not any(turn.role == Role.USER for turn in taken.turns):
            return _notice(taken, NOTHING_TO_REPEAT)
        with self._suspects if taken.num_deaths else contextlib.nullcontext():
            if taken.num_deaths and not _through_outage(lambda: self._mailbox.begin(taken)):
                return _notice(taken, FAILED)  # the claim was lost while waiting: nobody will see this
            return self._spoken(taken)

    def _spoken(self, taken: Taken) -> OutboxEntry:
        started = time.time()
        chosen = taken.settings
        persona = self._persona_named(chosen.persona)
        settings = _with_new_seed(chosen.generation, persona, taken)
        reply = self._speaker.respond(
            persona,
            taken.turns,
            settings,
            deadline=taken.deadline or None,
            group=taken.group,
            stream=self._teller(taken),
        )
        log.info(
            "replied",
            conversation=str(taken.conversation),
            fence=taken.fence,
            persona=persona.name,
            waited_s=round(started - taken.messages[0].submitted_at, 3),
            took_s=round(time.time() - started, 3),
        )
        replaced = taken.replaced
        return replace(
            _notice(taken, reply.text),
            kind=EntryKind.REGENERATED if taken.kind == Kind.REGENERATE else EntryKind.REPLY,
            persona=persona.name,
            replaces=replaced.message_id if replaced else "",
            seed=reply.seed,
            model=reply.model,
        )

    def _finish(self, taken: Taken, entry: OutboxEntry, *, takes_next: bool) -> Outcome:
        return _through_outage(
            lambda: self._mailbox.finish(taken, entry, takes_next=takes_next, buries=taken.is_poisonous)
        )

    def _hold(self, taken: Taken) -> None:
        with self._lock:
            self._held[taken.conversation] = taken.fence

    def _let_go(self, taken: Taken) -> None:
        with self._lock:
            if self._held.get(taken.conversation) == taken.fence:
                del self._held[taken.conversation]


def _notice(taken: Taken, text: str) -> OutboxEntry:
    return OutboxEntry(
        taken.conversation,
        EntryKind.NOTICE,
        text,
        reply_to=taken.messages[-1].reply_to,
        reply_id=str(taken.fence),
    )


def _with_new_seed(settings: GenerationSettings, persona: Persona, taken: Taken) -> GenerationSettings:
    """Where the seed is fixed, saying it anew would say the same again: another is taken, wherever that was fixed."""
    if taken.kind != Kind.REGENERATE:
        return settings
    fixed = settings.over(persona.generation).seed
    seed = secrets.randbits(32) if fixed is None else (fixed + taken.fence) % 2**63
    return settings.model_copy(update={"seed": seed})


def _through_outage(step: Callable[[], T]) -> T:
    """Repeat a step of the mailbox while Redis is away, pausing 0.1 to 2 s with jitter; fences make it harmless."""
    pause_s, deadline = 0.1, time.monotonic() + MAX_OUTAGE_S
    while True:
        try:
            return step()
        except (redis.ConnectionError, redis.TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, 2.0)


@dataclass
class _Process:
    """What this process answers with, once it is ready to."""

    replies: Replies | None = None
    on_engine_stopped: Callable[[EngineStopped], None] = lambda error: None


_process = _Process()


def install(replies: Replies | None, on_engine_stopped: Callable[[EngineStopped], None] = lambda error: None) -> None:
    """Let the task answer with `replies`; `on_engine_stopped` is told when the model is gone under them."""
    _process.replies = replies
    _process.on_engine_stopped = on_engine_stopped


def reply(conversation: str, fence: int) -> None:
    """Answer a claimed conversation."""
    if _process.replies is None:
        raise RuntimeError("this process has no model: start workers with `personabot worker`")
    try:
        _process.replies.answer(Conversation.parse(conversation), fence)
    except EngineStopped as error:
        _process.on_engine_stopped(error)


reply_task: Any = app.task(name=REPLY_TASK, ignore_result=True, acks_late=True)(reply)
