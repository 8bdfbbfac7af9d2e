"""Two personas talk with each other through one model, and what they say is written as training data for another.

    python -m benchmarks.self_chat ../shared/data/personachat/train.jsonl.gz --model smollm2-persona --out talks.jsonl

Distilling by sequences (Kim and Rush, "Sequence-Level Knowledge Distillation", 2016): the student trains on what its
teacher wrote, so that their vocabularies may differ. Personas and the first turn of each dialogue are the file's; give
it training data, never what models are measured on. A dialogue with a turn that is empty, unfinished or said before is
left out. Each is written as it ends: the same command goes on behind the last one in --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from personas.conversation import Role, Turn
from personas.errors import PersonabotError
from personas.logs import configure_logging
from personas.persona import GenerationSettings
from personas.settings import load_settings
from trainer.formats import DataError, Dialogue, read_dialogues
from worker.engine.engine import Engine
from worker.engine.request import FinishReason
from worker.generate import Task, generate
from worker.loading import LoadedModel, load_model
from worker.ranking import ngrams, repeated, shared

NUM_SIDE_BY_SIDE = 16
# Share of a turn's runs of three words that may have been said before; of 1,500 dialogues that people wrote
# (PersonaChat), 3.5 % have a turn above it.
MAX_REPEATED = 0.5


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a dialogue begins: the facts of who speaks first and of who answers, and the first turn."""

    id: int
    facts: tuple[tuple[str, ...], tuple[str, ...]]
    first: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A dialogue as it went; `fault` is why it ended early, "" where it did not."""

    opening: Opening
    texts: tuple[str, ...]
    fault: str = ""

    def line(self) -> str:
        """Return it as a line of the format `personachat`."""
        one, two = self.opening.facts
        data = {"id": self.opening.id, "p1": one, "p2": two, "turns": self.texts}
        return json.dumps(data, ensure_ascii=False) + "\n"


def openings(dialogues: Iterable[Dialogue]) -> Iterator[Opening]:
    """Take the opening of every dialogue in which both have a persona; ids count all of them."""
    for number, dialogue in enumerate(dialogues):
        if dialogue.facts and dialogue.partner_facts:
            facts = (dialogue.partner_facts, dialogue.facts)
            starts = dialogue.turns[0].role is Role.BOT
            yield Opening(number, facts[::-1] if starts else facts, dialogue.turns[0].text)


def converse(
    loaded: LoadedModel, engine: Engine, settings: GenerationSettings, opening: Opening, *, num_turns: int, seed: int
) -> Talk:
    """Let the two speak in turn up to `num_turns` turns, or the first one with a fault."""
    texts = [opening.first]
    while len(texts) < num_turns:
        speaker = len(texts) % 2
        own_seed = zlib.crc32(f"{seed}:{opening.id}:{len(texts)}".encode())
        sampled = GenerationSettings(seed=own_seed).over(settings)
        task = Task.of(sampled, loaded.layout, ends=None, group=("", ""), stream=None)
        turns, reserve = as_heard(texts, speaker), task.params.max_new_tokens
        prompt = loaded.layout.prompt(opening.facts[speaker], turns, max_tokens=loaded.window, reserve=reserve)
        completion, text = generate(engine, loaded.layout, tuple(prompt.ids), turns, task)
        if fault := fault_of(text, texts, has_stopped=completion.finish_reason is FinishReason.STOP):
            return Talk(opening, (*texts, text), fault)
        texts.append(text)
    return Talk(opening, tuple(texts))


def as_heard(texts: Sequence[str], speaker: int) -> tuple[Turn, ...]:
    """Return the turns from the side of speaker 0, who began, or 1."""
    return tuple(Turn(Role.BOT if place % 2 == speaker else Role.USER, text) for place, text in enumerate(texts))


def fault_of(text: str, before: Sequence[str], *, has_stopped: bool) -> str:
    """Return why a dialogue cannot go on with `text`, or "". Up to three words may be said any number of times."""
    if not text:
        return "empty"
    if not has_stopped:
        return "unfinished"
    grams = ngrams(text)
    is_said_again = len(grams) > 1 and max(shared(grams, before), repeated(grams)) > MAX_REPEATED
    return "repeated" if is_said_again else ""


def next_id(path: Path) -> int:
    """Return the id to go on with behind what `path` holds; half a line, left by a kill, is cut off."""
    if not path.exists():
        return 0
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    try:
        last = json.loads(whole.splitlines()[-1])["id"] if whole else -1
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its last line is no dialogue of self_chat; name another file with --out") from error
    with path.open("r+b") as file:
        file.truncate(len(whole) + len(newline))
    return int(last) + 1


def main() -> int:
    """Generate and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dialogues with both personas, in any format that training reads")
    parser.add_argument("--out", type=Path, required=True, help="where lines of the format personachat are added")
    parser.add_argument("--model", default="", help="folder, name or hub id; empty: the shipped default")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 or int8")
    parser.add_argument("--limit", type=int, help="only the first so many dialogues")
    parser.add_argument("--turns", type=int, default=8, help="turns of a dialogue, the first one included")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    configure_logging(load_settings(log_level="warning"))
    try:
        write(flags)
    except PersonabotError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write(flags: argparse.Namespace) -> None:
    """Add the dialogues that are not there yet, and tell how many were left out and why."""
    first = next_id(flags.out)
    wanted = [one for one in openings(itertools.islice(read_dialogues(flags.data), flags.limit)) if one.id >= first]
    if not wanted and not first:
        raise DataError(f"{flags.data}: expected dialogues with the personas of both speakers, found none")
    loaded = load_model(flags.model, dtype=flags.dtype)
    own = loaded.checkpoint.generation if loaded.checkpoint else GenerationSettings()
    settings = GenerationSettings(temperature=flags.temperature).over(own)
    endings: Counter[str] = Counter()
    # The engine stops first, so that after Ctrl-C whoever still waits for it is not waited for.
    with (
        flags.out.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(NUM_SIDE_BY_SIDE) as pool,
        Engine.for_model(loaded, max_num_seqs=NUM_SIDE_BY_SIDE) as engine,
    ):
        speak = partial(converse, loaded, engine, settings, num_turns=flags.turns, seed=flags.seed)
        for talk in pool.map(speak, wanted):
            if not talk.fault:
                file.write(talk.line())
                file.flush()
            endings[talk.fault or "written"] += 1
            if endings.total() % NUM_SIDE_BY_SIDE == 0:
                print(f"{endings.total()} of {len(wanted)}: {dict(endings)}", file=sys.stderr, flush=True)
    print(json.dumps({"model": loaded.name, "digest": loaded.digest, "dialogues": len(wanted), **endings}))


if __name__ == "__main__":
    sys.exit(main())
