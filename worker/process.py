"""One worker process: its pool of models, Celery's threads, the heartbeat of their claims, the sweep.

    personabot worker                                                  (one of `personabot up`, or alone)
    celery -A worker.queue.app worker -Q chat -P threads               the same, started by Celery's own command

Owns start and shutdown; what a task does is in `tasks`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import structlog
from celery import signals
from celery.platforms import SecurityWarning

from personas.catalogue import Catalogue, UnknownPersona, load_catalogue
from personas.conversation import Conversation
from personas.logs import configure_logging
from personas.persona import Persona
from personas.registry import Registry
from personas.remote import Follower
from personas.settings import Settings, load_settings
from worker import tasks
from worker.engine.errors import EngineStopped
from worker.queue.app import app, num_threads
from worker.queue.connection import broker_url, connect
from worker.queue.keys import CHAT_QUEUE
from worker.queue.loaded import RedisBoard
from worker.queue.mailbox import Mailbox
from worker.queue.pieces import telling
from worker.queue.server import running_server

log = structlog.get_logger(__name__)

BEATS_PER_LEASE: Final = 6  # a heartbeat may fail a few times before a living worker's claims are taken from it


class Heart:
    """A thread that renews the leases of what is being answered and sends the tasks of what was left behind."""

    def __init__(self, mailbox: Mailbox, replies: tasks.Replies) -> None:
        self._mailbox = mailbox
        self._replies = replies
        self._gone: set[tuple[Conversation, int]] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start beating."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and take the worker off the list of the living."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(redis.RedisError):
            self._mailbox.leave()

    def beat(self) -> None:
        """Renew first, sweep then: after an outage our own claims must not look like a dead worker's."""
        held = self._replies.held()
        lost = set(self._mailbox.renew(held))
        gone = {claim for claim in held if claim[0] in lost}
        for conversation, fence in gone & self._gone:  # what is gone at one beat only was just being finished
            log.info("claim lost: begun anew, or taken over", conversation=str(conversation), fence=fence)
        self._gone = gone
        for conversation, fence in self._mailbox.sweep():
            log.warning("task sent again", conversation=str(conversation), fence=fence)

    def _run(self) -> None:
        while True:
            try:
                self.beat()
            except redis.RedisError as error:
                log.warning("heartbeat failed, trying again", error=str(error))
            except Exception:
                log.exception("heartbeat failed, trying again")
            if self._stopped.wait(self._mailbox.lease_s / BEATS_PER_LEASE):
                return


@contextlib.contextmanager
def answering(settings: Settings, url: str, speaker: tasks.Speaker) -> Iterator[tasks.Replies]:
    """Let the task of this process answer with `speaker`, with a heartbeat beside it, until the block ends."""
    name = _worker_name()
    catalogue = load_catalogue(settings.personas_dir)
    named = Casting(catalogue, settings.default_persona).named
    with contextlib.closing(connect(url)) as client, telling(url) as teller:
        mailbox = Mailbox(client, worker=name, lease_s=settings.lease_s)
        replies = tasks.Replies(mailbox, speaker, named, teller)
        heart = Heart(mailbox, replies)
        tasks.install(replies, _end_without_engine)
        heart.start()
        log.info("ready", worker=name)
        try:
            yield replies
        finally:
            heart.stop()
            tasks.install(None)


@contextlib.contextmanager
def loaded_speaker(settings: Settings, url: str) -> Iterator[tasks.Speaker]:
    """Load the default model and start the pool; torch is imported here and no sooner."""
    from worker import metrics
    from worker.models import ModelPool

    with contextlib.closing(connect(url)) as client, contextlib.ExitStack() as stack:
        if settings.metrics_port:
            log.info("metrics shown", port=stack.enter_context(metrics.shown_at(settings.metrics_port)))
        if settings.checkpoint_remote:
            stack.enter_context(Follower(Registry.of(settings), settings.checkpoint_remote))
        yield stack.enter_context(ModelPool(settings, board=RedisBoard(client, _worker_name())))


def _worker_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _end_without_engine(error: EngineStopped) -> None:
    """A worker whose model is gone ends, so that whoever watches it starts a new one; the claims it held lapse."""
    log.critical("the engine is gone, the worker ends", error=str(error))
    _running.exit_status = 1
    os.kill(os.getpid(), signal.SIGTERM)


class Casting:
    """Says who speaks where a name was chosen, was not, or is not known any more."""

    def __init__(self, catalogue: Catalogue, default: str) -> None:
        self._catalogue = catalogue
        self._default = catalogue.get(default or catalogue.names()[0])

    def named(self, name: str) -> Persona:
        """Return the persona, or the default one."""
        if not name:
            return self._default
        try:
            return self._catalogue.get(name)
        except UnknownPersona:
            log.warning("persona is not in the catalogue, the default speaks", persona=name)
            return self._default


@dataclass
class _Running:
    """What `run` leaves for Celery's signals to find, and what the shutdown has to end."""

    settings: Settings | None = None
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    replies: tasks.Replies | None = None
    exit_status: int = 0
    error: Exception | None = None


_running = _Running()


def _keep_logging(**_: Any) -> None:
    """Celery leaves logging alone while somebody listens to this signal."""
    settings = _running.settings or load_settings()
    configure_logging(settings, process="worker")
    if settings.log_level != "debug":  # two lines for every task, and the tasks write one themselves
        logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
        logging.getLogger("celery.app.trace").setLevel(logging.WARNING)


def _start(conf: Any, options: dict[str, Any], **_: Any) -> None:
    """Find or start the server and load the model, before Celery connects; a worker of other queues does without."""
    queues = options.get("queues")
    names = queues.split(",") if isinstance(queues, str) else list(queues or [CHAT_QUEUE])
    settings = _running.settings or load_settings()
    try:
        url = _running.stack.enter_context(running_server(settings))
        conf.broker_url = broker_url(url)
        if CHAT_QUEUE in names:
            speaker = _running.stack.enter_context(loaded_speaker(settings, url))
            _running.replies = _running.stack.enter_context(answering(settings, url, speaker))
    except BaseException as error:
        _running.stack.close()
        if not isinstance(error, Exception):
            raise
        # Celery would log an exception of a signal's receiver, and go on without a model.
        _running.error = error
        raise SystemExit(f"worker: {error}") from error


def _stop_taking(**_: Any) -> None:
    """Finish the replies under way and hand over the rest."""
    if _running.replies is not None:
        _running.replies.stop()


def _stop(**_: Any) -> None:
    """End what `_start` began; the task threads have finished by now."""
    _running.stack.close()


def run(settings: Settings) -> None:
    """Be a chat worker until SIGTERM or Ctrl-C; ends with SystemExit, or with the error that kept it from starting."""
    _running.settings = settings
    _keep_logging()
    # Celery warns of running as root because of pickle; only JSON is accepted here, and containers run as root.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # until Celery takes it over
    try:
        worker = _celery_worker(settings)
    except SystemExit:
        if _running.error is not None:
            raise _running.error from None
        raise
    worker.start()
    raise SystemExit(_running.exit_status or worker.exitcode or 0)


def _celery_worker(settings: Settings) -> Any:
    return app.Worker(
        hostname=f"chat@{socket.gethostname()}-{os.getpid()}",
        queues=CHAT_QUEUE,
        pool="threads",
        concurrency=num_threads(settings.max_num_seqs),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        redirect_stdouts=False,
    )


if __name__ == "__main__":
    from worker import process  # the module that Celery imports too, not this second copy of it

    process.run(load_settings())
else:
    signals.setup_logging.connect(_keep_logging)
    signals.celeryd_init.connect(_start)
    signals.worker_shutting_down.connect(_stop_taking)
    signals.worker_shutdown.connect(_stop)
