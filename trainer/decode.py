"""Generates the replies that are judged: one for every bot turn of held-out dialogue, and the fixed samples.

Asks the engine itself, all requests at once, so that an empty reply stays empty (the worker would try again).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from personas.catalogue import Catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings
from trainer.formats import Dialogue
from trainer.metrics import Said
from worker.engine.engine import Engine
from worker.engine.request import Completion, FinishReason, Request, SamplingParams
from worker.loading import LoadedModel

GREEDY = GenerationSettings(do_sample=False)
SAMPLES = Path(__file__).with_name("samples.yaml")
# The engine's waiting line is 256 long; what is asked beyond it waits here.
MAX_OPEN = 128


@dataclass(frozen=True, slots=True)
class Asked:
    """A context to be answered, and the answer that was given there."""

    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    answer: str = ""

    @property
    def own(self) -> tuple[str, ...]:
        """The bot's turns so far."""
        return tuple(turn.text for turn in self.turns if turn.role is Role.BOT)


def asked_in(dialogues: Sequence[Dialogue]) -> list[Asked]:
    """Return every bot turn that follows something and is no mere context, with the true turns before it."""
    return [
        Asked(dialogue.facts, dialogue.turns[:place], turn.text)
        for dialogue in dialogues
        for place, turn in enumerate(dialogue.turns)
        if place and turn.role is Role.BOT and place not in dialogue.untrained
    ]


def decode(
    loaded: LoadedModel,
    engine: Engine,
    asked: Sequence[Asked],
    settings: GenerationSettings,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Said]:
    """Answer every context under `settings` over the checkpoint's own; replies depend on place and `seed`."""
    own = loaded.checkpoint.generation if loaded.checkpoint else GenerationSettings()
    said: dict[int, Said] = {}
    for start in range(0, len(asked), MAX_OPEN):
        futures: dict[Future[Completion], int] = {}
        for place in range(start, min(start + MAX_OPEN, len(asked))):
            one = asked[place]
            own_seed = zlib.crc32(f"{seed}:{place}".encode())
            params = SamplingParams.from_settings(GenerationSettings(seed=own_seed).over(settings.over(own)))
            prompt = loaded.layout.prompt(one.facts, one.turns, max_tokens=loaded.window, reserve=params.max_new_tokens)
            futures[engine.submit(Request(prompt_ids=tuple(prompt.ids), params=params))] = place
        for future in as_completed(futures):
            place, completion = futures[future], future.result()
            text = loaded.layout.text(completion.ids)
            has_stopped = completion.finish_reason is FinishReason.STOP
            said[place] = Said(text, asked[place].answer, asked[place].own, len(completion.ids), has_stopped)
            progress(len(said))
    return [said[place] for place in range(len(asked))]


def fixed_samples(catalogue: Catalogue) -> list[tuple[str, Asked]]:
    """Return (persona name, context) for each of the fixed prompts: the greeting, then one message."""
    lines: dict[str, str] = YAML(typ="safe").load(SAMPLES)
    contexts = []
    for name, message in lines.items():
        persona = catalogue.get(name)
        greeting = [Turn(Role.BOT, persona.greeting)] if persona.greeting else []
        contexts.append((name, Asked(persona.facts, (*greeting, Turn(Role.USER, message)))))
    return contexts


def samples_page(title: str, contexts: Sequence[tuple[str, Asked]], columns: Mapping[str, Sequence[Said]]) -> str:
    """Return samples.md: a row a prompt, a column a way of sampling."""
    rows = [
        f"# Samples of {title}\n",
        "The same prompts for every checkpoint, the replies as they came.\n",
        f"| persona | prompt | {' | '.join(columns)} |",
        f"|{'---|' * (2 + len(columns))}",
    ]
    for place, (name, one) in enumerate(contexts):
        cells = [name, one.turns[-1].text, *(said[place].reply for said in columns.values())]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), '<br>') for cell in cells)} |")
    return "\n".join(rows) + "\n"
