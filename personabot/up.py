"""`personabot up`: everything on this machine. Starts the queue, a worker and the adapters, and watches them.

With a token the adapters talk; without one the person at this terminal does, through the same queue.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from types import FrameType
from typing import Final

from rich.console import Console
from rich.text import Text

from bots.screens import PlainScreen, RichScreen
from bots.terminal import Chat, Screen
from personabot.console import AdminConsole
from personabot.queue_partner import QueuePartner
from personabot.supervise import Child, Supervisor
from personas.catalogue import load_catalogue
from personas.errors import PersonabotError
from personas.logs import configure_logging, log_path
from personas.settings import Settings
from worker.queue.server import EmbeddedServer, redis_url

LOOK_EVERY_S: Final = 0.25
ADAPTERS: Final = {"discord": "DISCORD_TOKEN", "telegram": "TELEGRAM_TOKEN"}


class CannotGoOn(PersonabotError):
    """Nothing that was to run can run."""


def run_everything(settings: Settings) -> None:
    """Run until Ctrl-C, SIGTERM or, in the terminal chat, until the person leaves."""
    platforms = [name for name in ADAPTERS if getattr(settings, f"{name}_token") is not None]
    house = House(settings, is_chatting_here=not platforms)
    signal.signal(signal.SIGTERM, _leave)
    try:
        with house:
            house.start(platforms)
            if platforms:
                house.wait()
            else:
                house.chat()
    except (KeyboardInterrupt, SystemExit):
        pass
    if house.failure:
        raise CannotGoOn(house.failure)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    # Not KeyboardInterrupt: in the chat that means "stop waiting for this reply".
    raise SystemExit


def worker_arguments(settings: Settings) -> list[str]:
    """Return the worker's command line: what flags may have said goes on, defaults too; the rest it reads itself."""
    flags = {
        "--model-path": settings.model,
        "--device": settings.device,
        "--dtype": settings.dtype,
        "--engine": settings.engine,
    }
    return ["worker", *(word for flag, value in flags.items() if value for word in (flag, value))]


class House(ExitStack):
    """The running parts, and who watches them. Leaving it stops adapters, worker and queue, in this order."""

    def __init__(self, settings: Settings, *, is_chatting_here: bool) -> None:
        super().__init__()
        self.failure = ""
        self._settings = settings
        self._is_chatting_here = is_chatting_here
        self._logs = settings.data_dir / "logs"
        # Replies alone go to standard output.
        self._console = Console(stderr=not (is_chatting_here and sys.stdout.isatty()), highlight=False, soft_wrap=True)
        self._supervisor = Supervisor(self._say)
        self._is_over = threading.Event()
        self._embedded = None if settings.redis_url else EmbeddedServer(settings.data_dir / "redis")

    def start(self, platforms: Sequence[str]) -> None:
        """Start the parts and say in plain words which, which not, and why."""
        self._log_here()
        self._be_the_only_one()
        where = "your REDIS_URL"
        if self._embedded:
            self._embedded.start()
            self.callback(self._embedded.release)
            where = f"embedded, data in {self._settings.data_dir}"
        self._report("started", "queue", where)
        self.callback(self._stop_children)
        self._start_child("worker", worker_arguments(self._settings))
        model = self._settings.model or "the shipped model"
        self._report("started", "worker", f"loads {model}{self._see_log('worker')}")
        if self._settings.admin_ids or self._is_chatting_here:
            self._start_child("training", ["worker", "--queues", "training", *worker_arguments(self._settings)[1:]])
            self._report("started", "training", f"waits for /retrain{self._see_log('training')}")
        else:
            self._report("left out", "training", "no admins in the settings")
        for name in ADAPTERS:
            if name in platforms:
                self._start_child(name, ["bot", name])
                self._report("started", name, self._see_log(name).removeprefix("; "))
            else:
                self._report("left out", name, f"no {ADAPTERS[name]}")
        if self._is_chatting_here:
            self._report("started", "chat", "here in this terminal, since there is no token")
        else:
            self._report("left out", "chat", "only without a token; `personabot chat` talks here")
            self._say("Ctrl-C stops everything.")
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        watch.start()
        self.callback(watch.join)
        self.callback(self._is_over.set)

    def _be_the_only_one(self) -> None:
        """Refuse a second `up` on the same data: two adapters of one token take each other's messages."""
        if find_spec("fcntl") is None:
            return
        import fcntl

        lock = self.enter_context((self._settings.data_dir / "up.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system when we are gone
        except BlockingIOError:
            raise CannotGoOn(
                f"personabot up is running already with the data in {self._settings.data_dir}. "
                "Stop that one first, or give this one a folder of its own with --data-dir."
            ) from None

    def wait(self) -> None:
        """Let the adapters work until somebody stops us."""
        while not self._is_over.wait(3600):
            pass

    def chat(self) -> None:
        """Talk to the person at this terminal, or to whoever writes into our standard input."""
        settings, catalogue = self._settings, load_catalogue(self._settings.personas_dir)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if not is_terminal:
            self._say("Standard input is no terminal: one message a line, replies on standard output.")
        with QueuePartner(
            redis_url(settings),
            catalogue,
            default_persona=catalogue.get(settings.default_persona or catalogue.names()[0]),
            deadline_s=settings.reply_deadline_s,
        ) as partner:
            screen: Screen = PlainScreen()
            if is_terminal:
                screen = RichScreen(
                    history_file=settings.data_dir / "terminal_history",
                    persona_names=catalogue.names(),
                    waiting_for=lambda: "thinking" if partner.is_worker_alive() else "loading the model",
                )
            partner.on_late_reply = lambda entry: screen.bot(entry.persona, entry.text)
            with AdminConsole(settings, redis_url(settings), screen.note) as console:
                Chat(partner, screen, catalogue, administer=console).run()

    def _start_child(self, name: str, arguments: Sequence[str]) -> None:
        log_file = log_path(self._settings, name) if self._is_chatting_here else None
        self._supervisor.start(Child(name, arguments, log_file))

    def _watch(self) -> None:
        """Look after the children and the embedded server until told to stop."""
        embedded = self._embedded
        while not self._is_over.wait(LOOK_EVERY_S):
            self._supervisor.step()
            if embedded and not embedded.is_running() and not self._is_over.is_set():
                self._say("queue: gone, starting again")
                try:
                    embedded.start()
                except PersonabotError as error:
                    self._give_up(str(error))
            lost = [child for child in self._supervisor.children if child.is_given_up]
            if any(child.name == "worker" for child in lost):
                self._give_up("The worker cannot run." + self._last_words("worker"))
            adapters = [child for child in self._supervisor.children if child.name in ADAPTERS]
            if adapters and all(child.is_given_up for child in adapters):
                self._give_up("No adapter can run; the lines above say why.")

    def _give_up(self, failure: str) -> None:
        """Stop everything, from the watching thread."""
        self.failure = failure
        self._is_over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def _last_words(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        if not self._is_chatting_here or not path.exists():
            return " The lines above say why."
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f" It said: {lines[-1]}" if lines else ""

    def _stop_children(self) -> None:
        self._say("Stopping; what is unanswered is kept for the next start.")
        self._supervisor.stop()
        self._say("Stopped.")

    def _log_here(self) -> None:
        """Keep our own log lines out of the conversation."""
        file = log_path(self._settings, "up") if self._is_chatting_here else None
        configure_logging(self._settings, "up", file)

    def _see_log(self, name: str) -> str:
        return f"; log in {self._logs / name}.log" if self._is_chatting_here else "; its log lines appear here"

    def _report(self, status: str, part: str, text: str) -> None:
        style = "green" if status == "started" else "dim"
        self._console.print(Text.assemble((f"  {status:<9}", style), (f"{part:<9}", "bold"), text))

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))
