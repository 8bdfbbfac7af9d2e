"""Random load on a worker's models: people in many rooms who talk to a few personas, and want replies of every kind.

They speak in bursts that wait for nobody, at times more of them than the queue takes; some replies have a deadline,
some are cancelled. Now and then another model takes over. What is left once nobody speaks is looked at, and noted where
it is not as it should be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from benchmarks.crowd import NUM_TURNS, TEXTS
from benchmarks.witness import Witness
from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.registry import Registry
from worker.engine.errors import DeadlinePassed, EngineError
from worker.engine.request import FinishReason
from worker.models import ModelPool

NUM_SLOTS = 6
NUM_ROOMS = 64
NUM_PERSONAS = 6
FLOOD = 48
CANCELS_PER_MESSAGE = 0.1
PROBE = GenerationSettings(do_sample=False, max_new_tokens=32, seed=0)
DEFECTS = ("GenerationFailed", "EngineStopped")  # nothing here crashes a model or stops one that is asked


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast all goes: a round of `num_bursts` with pauses of `pause_s` on average between them. A model that was
    replaced goes after `idle_s`; nobody may wait for a reply `patience_s` after the last burst."""

    num_bursts: int = 240
    pause_s: float = 0.25
    swaps_per_burst: float = 1 / 240
    idle_s: float = 5.0
    patience_s: float = 600.0  # the cores may be busy with something else


@dataclass
class Room:
    """A conversation. Its history grows until it begins anew, with somebody else."""

    name: str
    persona: Persona
    turns: list[Turn] = field(default_factory=list)
    is_waiting: bool = False


class Load:
    """Random messages to `pool`, whose engines `witness` sees, while the models `names` take over from each other."""

    def __init__(
        self,
        pool: ModelPool,
        registry: Registry,
        names: Sequence[str],
        witness: Witness,
        executor: ThreadPoolExecutor,
        pace: Pace,
        seed: int,
    ) -> None:
        self.num_messages = self.num_swaps = 0
        self.failures: list[str] = []
        self._pool = pool
        self._registry = registry
        self._names = names
        self._witness = witness
        self._executor = executor
        self._pace = pace
        self._draw, self._pauses = random.Random(seed), random.Random(seed)
        catalogue = load_catalogue(None)
        self._personas = [catalogue.get(name) for name in catalogue.names()[:NUM_PERSONAS]]
        self._rooms = [Room(f"room {number}", self._draw.choice(self._personas)) for number in range(NUM_ROOMS)]
        self._probed: dict[str, str] = {}
        self._talks: list[Future[None]] = []

    def run(self) -> None:
        """Let people speak for one round."""
        for _ in range(self._pace.num_bursts):
            self._burst()
            time.sleep(self._pauses.expovariate(1 / self._pace.pause_s))

    def settle(self) -> None:
        """Wait until all is answered, by one model at last, ask the probe, and note what is not as it should be."""
        done, still = wait(self._talks, self._pace.patience_s)
        for talk in done:
            talk.result()
        self._talks = [*still]
        self._rest()
        told = self._probe()
        self._rest()
        witness, ended = self._witness, self._witness.endings.total()
        problems = {
            f"{len(still)} messages were not answered in {self._pace.patience_s:g} s": still,
            f"{witness.num_slots_in_use} slots are in use by nobody": witness.num_slots_in_use,
            f"{witness.num_asked} requests, but {ended} endings": witness.num_asked != ended,
            f"{witness.num_open} requests did not end": witness.num_open,
            f"requests ended by a defect: {dict(witness.endings)}": any(witness.endings[name] for name in DEFECTS),
            f"loaded is not just {self._chosen}": not self._has_one_model(),
            told: told,
        }
        self.failures += [problem for problem, is_there in problems.items() if is_there]

    def _burst(self) -> None:
        """Let some people speak, or at times more than can wait, and now and then another model take over."""
        for _ in range(self._draw.choices((1, 2, 4, FLOOD), (60, 25, 12, 3))[0]):
            self._say(self._draw.choice(self._rooms))
            if self._draw.random() < CANCELS_PER_MESSAGE:
                self._witness.cancel_one()
        if self._draw.random() < self._pace.swaps_per_burst:
            self.num_swaps += 1
            self._registry.choose(self._chosen)

    def _rest(self) -> None:
        """Wait for what nobody else waits for: those cancelled last, and a model that loads or is unloaded."""
        ends = time.monotonic() + self._pace.patience_s
        while not (self._witness.is_idle and self._has_one_model()) and time.monotonic() < ends:
            time.sleep(0.01)

    def _probe(self) -> str:
        """Ask for a greedy reply, and compare it with the first one of that model; return what is wrong, if anything.

        Where the time was over before or while it came, the cores are too busy with something else to tell.
        """
        deadline = time.time() + self._pace.patience_s
        try:
            reply = self._pool.respond(self._personas[0], [Turn(Role.USER, TEXTS[0])], PROBE, deadline)
        except DeadlinePassed:
            return ""
        except EngineError as error:
            return f"the probe was refused: {error}"
        if reply.finish_reason is FinishReason.TIME:
            return ""
        is_same = self._probed.setdefault(reply.model.partition("@")[2], reply.text) == reply.text
        return "" if is_same else "the greedy reply changed"

    @property
    def _chosen(self) -> str:
        return self._names[self.num_swaps % len(self._names)]

    def _has_one_model(self) -> bool:
        return [state.name for state in self._pool.loaded()] == [self._chosen]

    def _say(self, room: Room) -> None:
        text = " ".join(self._draw.choices(TEXTS, k=self._draw.randint(1, 4)))
        other, (settings, patience_s) = self._draw.choice(self._personas), wanted(self._draw)
        if room.is_waiting:
            return
        if len(room.turns) >= 2 * NUM_TURNS:
            room.turns, room.persona = [], other
        room.turns.append(Turn(Role.USER, text))
        room.is_waiting = True
        self.num_messages += 1
        self._talks.append(self._executor.submit(self._answer, room, settings, patience_s))

    def _answer(self, room: Room, settings: GenerationSettings, patience_s: float | None) -> None:
        deadline = None if patience_s is None else time.time() + patience_s
        try:
            reply = self._pool.respond(room.persona, room.turns, settings, deadline, group=("server", room.name))
            room.turns.append(Turn(Role.BOT, reply.text))
        except (EngineError, CancelledError):
            room.turns.pop()
        finally:
            room.is_waiting = False


def wanted(draw: random.Random) -> tuple[GenerationSettings, float | None]:
    """Draw how a reply is wanted, and within how many seconds."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "candidates": {"candidates": draw.randint(2, 4)},
        "beams": {"num_beams": draw.randint(2, 4), "do_sample": False},
        "too many beams": {"num_beams": NUM_SLOTS + 1},
        "stop strings": {"stop_strings": (draw.choice((".", "?", "i ")),)},
        "both": {"stop_strings": (".",), "num_beams": 2},
    }
    [kind] = draw.choices([*kinds], (54, 15, 10, 2, 14, 5))
    settings = GenerationSettings(
        seed=draw.getrandbits(32),
        temperature=draw.uniform(0.3, 1.5),
        max_new_tokens=draw.randint(1, 40),
        **kinds[kind],
    )
    return settings, draw.choice([None, None, None, None, 0.02, draw.uniform(0.1, 2.0)])
