"""The gate: is a new model fit to be served? Measures it beside the present one, and decides by the limits alone.

`decide` is pure. What is measured, and how, is here and in `measure`; who promotes what passes is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.limits import GateLimits
from personas.lineage import Figure, Verdict
from personas.persona import GenerationSettings
from trainer.decode import Asked, decode
from trainer.formats import Dialogue
from trainer.measure import Measurements
from trainer.metrics import repeated
from trainer.probes import Probe, load_probes
from trainer.retraining.data_checks import plain
from trainer.retraining.general import general_set
from worker.engine.engine import Engine
from worker.loading import LoadedModel

PROBE_STEP: Final = 9  # every ninth question of the probe, 40 of them: all kinds, all personas, every wording
SMOKE: Final = (
    "Hi! Who are you?",
    "What did you do yesterday?",
    "Do you have any family?",
    "I had a long day at work.",
    "What makes you laugh?",
    "I have to go now. Good night!",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the gate measures of one model. Losses in bits per byte of the bot's turns, the rest shares of 0 to 1.

    `probe`: questions answered with what was asked for. `repetition`: 4-grams that a reply has said before.
    `same_reply`: questions that got the commonest reply, the first one apart. `empty`: replies without a word.
    `smoke`: the replies of the smoke conversation.
    """

    bpb_new: float
    bpb_general: float
    probe: float
    repetition: float
    same_reply: float
    empty: float
    smoke: tuple[str, ...] = ()

    @property
    def num_smoke_failures(self) -> int:
        """Replies of the smoke conversation that say nothing, or what was said before in it."""
        said = [plain(reply) for reply in self.smoke]
        return sum(not reply or reply in said[:place] for place, reply in enumerate(said))


def decide(new: Measured, present: Measured, limits: GateLimits) -> Verdict:
    """Return the verdict on `new`. A share that the present model exceeds already is judged by that model's."""
    figures = (
        Figure(name="new data", value=new.bpb_new, limit=present.bpb_new + limits.max_loss_new, unit="bits per byte"),
        Figure(
            name="general set",
            value=new.bpb_general,
            limit=present.bpb_general + limits.max_forgetting,
            unit="bits per byte",
        ),
        Figure(name="probe", value=new.probe, limit=max(present.probe - limits.max_probe_loss, 0), rule="at least"),
        Figure(name="repetition", value=new.repetition, limit=max(present.repetition, limits.max_repetition)),
        Figure(name="same reply", value=new.same_reply, limit=max(present.same_reply, limits.max_same_reply)),
        Figure(name="empty replies", value=new.empty, limit=max(present.empty, limits.max_empty)),
        Figure(
            name="smoke conversation",
            value=new.num_smoke_failures,
            limit=max(present.num_smoke_failures, limits.max_smoke_failures),
            unit="failed replies",
        ),
    )
    return Verdict(figures=figures)


def measure(
    loaded: LoadedModel, new: Sequence[Dialogue], *, general: Sequence[Dialogue] | None = None, seed: int = 1
) -> Measured:
    """Measure a model on held-out dialogues `new`, on the general set, and by what it says.

    Takes about 40 short replies and a pass over the dialogues; the same seed gives the same replies.
    """
    measurements = Measurements(loaded, seed=seed)
    bpb_new = measurements.score(new)["bpb"]
    bpb_general = measurements.score(general or general_set())["bpb"]
    questions = _questions()
    with Engine.for_model(loaded) as engine:
        said = decode(loaded, engine, [asked for _, asked in questions], GenerationSettings(), seed=seed)
        smoke = _smoke(loaded, engine, seed)
    replies = [one.reply for one in said]
    hits = [probe.is_used_in(reply) for (probe, _), reply in zip(questions, replies, strict=True)]
    return Measured(
        bpb_new=bpb_new,
        bpb_general=bpb_general,
        probe=sum(hits) / len(hits),
        repetition=sum(map(repeated, replies)) / len(replies),
        same_reply=(max(Counter(map(plain, replies)).values()) - 1) / len(replies),
        empty=sum(not plain(reply) for reply in replies) / len(replies),
        smoke=smoke,
    )


def _questions() -> list[tuple[Probe, Asked]]:
    """Every ninth question of the probe, each in a fresh conversation behind the persona's greeting."""
    catalogue = load_catalogue(None)
    questions = []
    for name, probe, question in list(load_probes().questions())[::PROBE_STEP]:
        persona = catalogue.get(name)
        greeting = (Turn(Role.BOT, persona.greeting),) if persona.greeting else ()
        questions.append((probe, Asked(persona.facts, (*greeting, Turn(Role.USER, question)))))
    return questions


def _smoke(loaded: LoadedModel, engine: Engine, seed: int) -> tuple[str, ...]:
    """Hold the smoke conversation with the catalogue's first persona; return the replies."""
    catalogue = load_catalogue(None)
    persona = catalogue.get(catalogue.names()[0])
    turns: list[Turn] = []
    for place, line in enumerate(SMOKE):
        turns.append(Turn(Role.USER, line))
        asked = Asked(persona.facts, tuple(turns))
        [said] = decode(loaded, engine, [asked], GenerationSettings(), seed=seed + place)
        turns.append(Turn(Role.BOT, said.reply or "..."))
    return tuple(turn.text for turn in turns if turn.role is Role.BOT)
