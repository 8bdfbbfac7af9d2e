"""The pool: every model that this worker has loaded, and which one answers for whom.

One thread loads, beside the models that answer; a request holds its model until it has its reply, so that a swap
falls between two requests and an old model goes when its last one is done. Who speaks with what is decided in
`personas.voices`. Knows no queue and no tensors.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import structlog

from personas.conversation import Role, Turn
from personas.errors import PersonabotError
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry
from personas.settings import Settings
from personas.voices import Given, checkpoint_of
from worker.engine.errors import DeadlinePassed
from worker.following import Following
from worker.loading import Found, earlier_versions, find_model
from worker.memory import NoRoom, engine_bytes, give_back, keep_few_kernels, memory_budget
from worker.presence import Presence
from worker.queue.loaded import Board, LoadedState, NoBoard
from worker.respond import Reply, Responder, start_responder

log = structlog.get_logger(__name__)

DEFAULT: Final = ""  # the reference of everybody without a checkpoint of their own
POLL_S: Final = 1.0
BEAT_S: Final = 10.0  # how often leases and the board are renewed
RETRY_S: Final = 60.0  # after a failure, unless something was promoted meanwhile
IDLE_S: Final = 600.0  # a model that answers for nobody stays so long, so that a rollback need not load it
PATIENCE_S: Final = 30.0  # how long a load waits for running requests to free memory
NOBODY: Final = Persona(name="Nobody")
WARM_UP: Final = GenerationSettings(do_sample=False, max_new_tokens=4, seed=0)


@dataclass(eq=False, slots=True)
class Model:
    """A loaded model; `num_users` requests hold it."""

    found: Found
    responder: Responder
    num_bytes: int
    since: float = field(default_factory=time.time)
    used_at: float = field(default_factory=time.monotonic)
    num_users: int = 0

    def state(self, serves: Iterable[str]) -> LoadedState:
        """Return what others may know of it."""
        loaded, reference = self.responder.loaded, self.found.reference
        names = tuple(sorted(serves))
        return LoadedState(loaded.name, loaded.digest, reference, names, self.since, self.num_bytes, loaded.reason)


class ModelPool:
    """Speaks as any persona with the checkpoint it asks for. Many threads may ask at once; a context manager.

    What is asked for is a reference: "" for the default, a registered name, a folder or a hub id.
    """

    def __init__(
        self, settings: Settings, *, board: Board | None = None, budget: int | None = None, idle_s: float = IDLE_S
    ) -> None:
        """`budget` in bytes; None: as the settings say."""
        self._settings = settings
        self._registry = Registry.of(settings)
        self._presence = Presence(self._registry.folder, board or NoBoard())
        self._budget = memory_budget(settings) if budget is None else budget
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._models: list[Model] = []
        self._serving: dict[str, Model] = {}
        self._wanted: dict[str, None] = {}  # asked for, and not decided yet
        self._failed: dict[str, tuple[float, str]] = {}  # when, and why
        self._is_stopping = False
        self._following = Following(self._registry, self._presence)
        self._beaten = 0.0
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Load the default model, or an earlier version of it where the current one cannot be; raises what that did."""
        keep_few_kernels()
        wanted = self._default()
        try:
            self._bring(DEFAULT, wanted)
        except PersonabotError as error:
            self._note_failure(DEFAULT, error)
            if not any(self._is_brought(DEFAULT, each) for each in earlier_versions(wanted, self._registry)):
                self._presence.release()
                raise
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop every engine; replies under way end with an error."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        for model in self._models:
            model.responder.stop()
        self._presence.release()

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings | None = None,
        deadline: float | None = None,
        **options: Any,
    ) -> Reply:
        """Return what `persona` says next, from one model throughout; see `Responder.respond`."""
        with self._using(checkpoint_of(persona, self._following.voices) or DEFAULT, deadline) as responder:
            return responder.respond(persona, turns, settings, deadline, **options)

    def loaded(self) -> list[LoadedState]:
        """Return what is loaded, oldest first."""
        with self._changed:
            return [
                model.state(name for name, each in self._serving.items() if each is model) for model in self._models
            ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def _using(self, reference: str, deadline: float | None) -> Iterator[Responder]:
        model = self._take(reference, deadline)
        try:
            yield model.responder
        finally:
            with self._changed:
                model.num_users -= 1
                model.used_at = time.monotonic()
                self._changed.notify_all()

    def _take(self, reference: str, deadline: float | None) -> Model:
        """Hold the model for `reference`, waiting for its first load; where that fails, the default answers."""
        with self._changed:
            if reference not in self._serving and reference not in self._failed:
                self._wanted[reference] = None
                self._changed.notify_all()
                patience = None if deadline is None else deadline - time.time()
                if not self._changed.wait_for(lambda: reference not in self._wanted or self._is_stopping, patience):
                    raise DeadlinePassed("the time for this reply was over before its model was loaded")
            model = self._serving.get(reference) or self._serving[DEFAULT]
            model.num_users += 1
            return model

    def _run(self) -> None:
        """Load what is wanted, follow what is promoted and given, let go of what is idle."""
        while self._wait_for_work():
            try:
                voices = self._following.look()
                for reference in self._due(voices):
                    self._is_brought(reference)
                if voices is not None:
                    self._forget(self._following.take_over(voices))
                    self._beat()
                if self._drop_idle():
                    give_back()
                if time.monotonic() - self._beaten > BEAT_S:
                    self._beat()
            except Exception:  # such as a data folder that is away: nobody may wait for a thread that is gone
                log.exception("the pool could not look after its models, trying again")

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._is_stopping, POLL_S)
            return not self._is_stopping

    def _due(self, voices: Given | None) -> list[str]:
        """Return the references to resolve anew: after a change all of them and new voices, else what is overdue."""
        ended = time.monotonic() - RETRY_S
        with self._changed:
            if voices is not None:
                known = [*self._serving, *self._failed]
                return list(dict.fromkeys([*known, *self._following.new_in(voices), *self._wanted]))
            overdue = [name for name, (at, _) in self._failed.items() if at < ended]
            return list(dict.fromkeys([*self._wanted, *overdue]))

    def _forget(self, names: Iterable[str]) -> None:
        """Follow these no more until somebody asks for them; their models stay for a while, as all idle ones do."""
        with self._changed:
            for name in names:
                self._serving.pop(name, None)
                self._failed.pop(name, None)

    def _is_brought(self, reference: str, wanted: str = "") -> bool:
        """Let `wanted`, or what `reference` means now, answer for it; after a failure what did before goes on."""
        try:
            self._bring(reference, wanted or reference or self._default())
        except Exception as error:  # whatever a foreign model makes its libraries raise
            self._note_failure(reference, error)
        return reference not in self._failed

    def _bring(self, reference: str, wanted: str) -> None:
        found = find_model(wanted, self._registry)
        model = next((each for each in self._models if each.found == found), None) or self._load(found)
        with self._changed:
            before = self._serving.get(reference)
            self._serving[reference] = model
            self._failed.pop(reference, None)
            self._wanted.pop(reference, None)
            model.used_at = time.monotonic()
            self._changed.notify_all()
        if before is not model:
            log.info("model serves", reference=reference, model=model.found.name, digest=model.responder.loaded.digest)
            self._beat()

    def _load(self, found: Found) -> Model:
        """Load beside the others within the budget, and try it once before anybody is answered by it."""
        self._hold(found)  # first, so that nobody deletes it meanwhile
        if found.reference:
            self._registry.verify(found.reference)
        num_bytes = engine_bytes(found, self._settings)
        self._make_room(num_bytes)
        give_back()
        responder = start_responder(self._settings, model=str(found.place))
        try:
            responder.respond(NOBODY, [Turn(Role.USER, "Hello.")], WARM_UP)
        except BaseException:
            responder.stop()
            raise
        model = Model(found, responder, num_bytes)
        with self._changed:
            self._models.append(model)
        return model

    def _make_room(self, num_bytes: int) -> None:
        """Let go of the least recently used models until `num_bytes` fit, waiting for busy ones; raises `NoRoom`.

        The first model is loaded whatever the budget says: without it there is no worker.
        """
        ends = time.monotonic() + PATIENCE_S
        while self._models and (used := sum(model.num_bytes for model in self._models)) + num_bytes > self._budget:
            with self._changed:
                others = [model for model in self._models if model is not self._serving.get(DEFAULT)]
                idle = [model for model in others if not model.num_users]
                if others and not idle and time.monotonic() < ends and not self._is_stopping:
                    self._changed.wait(POLL_S)
                    continue
            if not idle:
                raise NoRoom(needed=num_bytes, used=used, budget=self._budget)
            self._unload(min(idle, key=lambda model: model.used_at))

    def _drop_idle(self) -> bool:
        """Let go of what answers for nobody any more and has not for a while; tell whether there was any."""
        ended = time.monotonic() - self._idle_s
        serving = self._serving.values()
        old = [model for model in self._models if model not in serving and model.used_at < ended]
        for model in old:
            self._unload(model)
        return bool(old)

    def _unload(self, model: Model) -> None:
        with self._changed:
            if model.num_users:
                return
            self._models.remove(model)
            self._serving = {reference: each for reference, each in self._serving.items() if each is not model}
        model.responder.stop()
        log.info("model unloaded", model=model.found.name, digest=model.responder.loaded.digest)
        self._beat()

    def _default(self) -> str:
        return self._registry.chosen() or self._settings.model

    def _note_failure(self, reference: str, error: Exception) -> None:
        with self._changed:
            _, known = self._failed.get(reference, (0.0, ""))
            self._failed[reference] = (time.monotonic(), str(error))
            self._wanted.pop(reference, None)
            self._changed.notify_all()
        if known == str(error):  # tried again in vain
            return
        self._presence.failed(reference, str(error))

    def _beat(self) -> None:
        """Renew what others know of this pool."""
        self._beaten = time.monotonic()
        self._hold()
        self._presence.show(self.loaded())

    def _hold(self, *found: Found) -> None:
        self._presence.hold(each.reference for each in (*(model.found for model in self._models), *found))
