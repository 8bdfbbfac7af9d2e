"""`personabot sweep`: the same prompts under many settings and models, for a person to read and choose.

Owns the grid and the page; replies come from `Responder`, as in a chat.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from pydantic import ValidationError

from personas.catalogue import Catalogue
from personas.conversation import Role, Turn
from personas.errors import PersonabotError
from personas.persona import GenerationSettings, Persona
from trainer.metrics import Said, reply_figures
from worker.engine.engine import Engine
from worker.engine.request import FinishReason
from worker.loading import LoadedModel
from worker.respond import Responder

NUM_THREADS = 16
COLUMNS = {
    "distinct_1": "{:.2f}",
    "distinct_2": "{:.2f}",
    "repeated_4": "{:.1%}",
    "empty": "{:.1%}",
    "stopped": "{:.1%}",
    "questions": "{:.0%}",
    "mean_words": "{:.1f}",
}
_TEMPLATE = Path(__file__).with_name("sweep.html.jinja")


class SweepError(PersonabotError):
    """The grid or the prompts cannot be used."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One message to one persona, behind its greeting."""

    persona: Persona
    message: str

    @property
    def turns(self) -> tuple[Turn, ...]:
        greeting = (Turn(Role.BOT, self.persona.greeting),) if self.persona.greeting else ()
        return (*greeting, Turn(Role.USER, self.message))


@dataclass(frozen=True, slots=True)
class Column:
    """What one model says to every prompt under one point of the grid."""

    model: str
    name: str
    said: tuple[Said, ...]

    @property
    def figures(self) -> dict[str, str]:
        """The figures that a person compares, as they are written."""
        figures = reply_figures(self.said)
        return {name.replace("_", "-"): shape.format(figures[name]) for name, shape in COLUMNS.items()}


def grid(axes: Sequence[str]) -> dict[str, GenerationSettings]:
    """Return every combination of `axes`, each of the form "temperature=0.5,0.8", by a name that spells it out.

    Raises `SweepError` where an axis is not a sampling parameter or a value is not allowed.
    """
    named: list[list[tuple[str, str]]] = []
    for axis in axes:
        name, _, values = axis.partition("=")
        name = name.strip().replace("-", "_")
        if not values or name not in GenerationSettings.model_fields:
            known = ", ".join(GenerationSettings.model_fields)
            raise SweepError(f"--grid {axis}: expected NAME=VALUE,VALUE with one of {known}")
        named.append([(name, value.strip()) for value in values.split(",") if value.strip()])
    points = {}
    for combination in itertools.product(*named):
        title = " ".join(f"{name}={value}" for name, value in combination)
        try:
            points[title] = GenerationSettings.model_validate(dict(combination))
        except ValidationError as error:
            raise SweepError(f"--grid {title}: {error.errors()[0]['msg'].lower()}") from error
    return points if axes else {}


def read_prompts(path: Path, persona: Persona) -> list[Prompt]:
    """Return the prompts of a file, one message a line, all of them to `persona`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path}: cannot be read: {error}") from error
    prompts = [Prompt(persona, line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise SweepError(f"{path}: no prompts in it; write one message a line")
    return prompts


def fixed_prompts(catalogue: Catalogue, messages: Mapping[str, str]) -> list[Prompt]:
    """Return a prompt for each (persona's name, message)."""
    return [Prompt(catalogue.get(name), message) for name, message in messages.items()]


def sweep(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    points: Mapping[str, GenerationSettings],
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Column]:
    """Ask `loaded` every prompt at every point; a prompt has the same seed at all of them."""
    columns = []
    with Engine.for_model(loaded) as engine, ThreadPoolExecutor(NUM_THREADS) as pool:
        responder = Responder(loaded, engine)
        for name, settings in points.items():
            asked = [(prompt, zlib.crc32(f"{seed}:{number}".encode())) for number, prompt in enumerate(prompts)]
            said = pool.map(partial(_ask, responder, settings), asked)
            columns.append(Column(f"{loaded.name} ({loaded.digest})", name, tuple(said)))
            progress(len(columns))
    return columns


def _ask(responder: Responder, settings: GenerationSettings, asked: tuple[Prompt, int]) -> Said:
    prompt, seed = asked
    reply = responder.respond(prompt.persona, prompt.turns, settings.over(GenerationSettings(seed=seed)))
    text = "" if reply.is_fallback else reply.text
    own = tuple(turn.text for turn in prompt.turns if turn.role is Role.BOT)
    return Said(text, "", own, reply.num_new_tokens, reply.finish_reason is FinishReason.STOP)


def table(columns: Sequence[Column]) -> list[list[str]]:
    """Return the header and a row of figures for every column of replies."""
    header = ["model", "settings", *(name.replace("_", "-") for name in COLUMNS)]
    return [header, *([column.model, column.name, *column.figures.values()] for column in columns)]


def page(prompts: Sequence[Prompt], columns: Sequence[Column], *, seed: int) -> str:
    """Return the HTML page: the table, and every prompt with its replies side by side."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        rows=table(columns), prompts=prompts, columns=columns, seed=seed
    )
