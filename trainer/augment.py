"""Questions about the persona, put into training dialogues. Pure functions; the rules are patterns in `questions.yaml`.

Persona dialogue rarely asks for a name or a stated fact outright, while people in chats do so at once. From each fact
that a pattern fits, a question and an answer that uses the fact are made and inserted between two turns. The
catalogue's personas are never seen here; some of the probe's questions are everyday wordings that occur here too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from personas.conversation import Role, Turn
from trainer.formats import Dialogue

_TABLE: dict[str, Any] = YAML(typ="safe").load(Path(__file__).with_name("questions.yaml"))
_RULES = tuple((re.compile(rule["fact"]), rule["ask"]) for rule in _TABLE["rules"])
# How many of the questions ask for the name, where there is one.
NAME_SHARE = 0.4
# For dialogue that names nobody.
_NAME_FACTS = ("My name is {}.", "My name is {}.", "I am {}.", "I'm {}.")


def spaced(text: str) -> str:
    """Put spaces around punctuation, as ConvAI2's own files have it ("good , and you ?")."""
    return " ".join(re.sub(r"([.,!?;()])", r" \1 ", text).split())


def with_name(dialogue: Dialogue, rng: random.Random) -> Dialogue:
    """Give the bot a name, as a first fact, where the data has none."""
    if dialogue.name:
        return dialogue
    name = rng.choice(_TABLE["first_names"]) + (f" {rng.choice(_TABLE['last_names'])}" if rng.random() < 0.6 else "")
    facts = list(dialogue.facts)
    facts.insert(
        rng.choice((0, 0, 0, len(facts))),
        rng.choice(_NAME_FACTS).format(name),
    )
    return replace(dialogue, facts=tuple(facts), name=name)


def with_questions(dialogue: Dialogue, rng: random.Random, *, num_questions: int, is_lower: bool) -> Dialogue:
    """Insert up to `num_questions` exchanges about the persona before user turns or at the end.

    Dialogue with turns that carry no loss stays as it is: its turns are counted.
    """
    if dialogue.untrained:
        return dialogue
    exchanges = [e for e in (_exchange(dialogue, rng) for _ in range(num_questions)) if e]
    turns = list(dialogue.turns)
    for question, answer in exchanges:
        if is_lower:
            question, answer = question.lower(), answer.lower()
        elif rng.random() < 0.4:
            question = question[:1].upper() + question[1:]
        places = [i for i, turn in enumerate(turns) if turn.role is Role.USER] + [len(turns)]
        if turns and turns[-1].role is Role.USER:
            places.pop()
        # Mostly early: chats begin with these questions.
        at = places[min(int(rng.random() ** 2 * len(places)), len(places) - 1)]
        turns[at:at] = [Turn(Role.USER, question), Turn(Role.BOT, answer)]
    return replace(dialogue, turns=tuple(turns))


def is_trained_wording(question: str) -> bool:
    """Return whether training may have asked in these very words, so that a probe can report the others apart."""
    plain = _words(question)
    templates = [*_TABLE["name_questions"], *(ask for rule in _TABLE["rules"] for ask in rule["ask"])]
    patterns = (re.escape(_words(re.sub(r"\{\w+\}", "SLOT", t))).replace("slot", ".+") for t in templates)
    openings = "|".join(re.escape(_words(reaction)) for reaction in set(_TABLE["reactions"]) if reaction)
    return any(re.fullmatch(f"(?:(?:{openings}) )?{pattern}", plain) for pattern in patterns)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9 ]", "", text.lower()).split())


def _exchange(dialogue: Dialogue, rng: random.Random) -> tuple[str, str] | None:
    facts = [fact for fact in dialogue.facts if not (dialogue.name and dialogue.name.lower() in fact.lower())]
    if dialogue.name and (not facts or rng.random() < NAME_SHARE):
        return _name_exchange(dialogue.name, facts, rng)
    return _fact_exchange(rng.choice(facts), rng) if facts else None


def _name_exchange(name: str, facts: Sequence[str], rng: random.Random) -> tuple[str, str]:
    question = rng.choice(_TABLE["reactions"]) + rng.choice(_TABLE["name_questions"]).format(
        other=rng.choice(_TABLE["first_names"])
    )
    fact = rng.choice(facts) if facts else ""
    answer = rng.choice(_TABLE["name_answers"]).format(name=name, first=name.split()[0], fact=fact)
    return _unpunctuated(question, rng), answer.strip()


def _fact_exchange(fact: str, rng: random.Random) -> tuple[str, str] | None:
    plain = fact.strip().rstrip(".!").strip()
    fitting = [(match, questions) for pattern, questions in _RULES if (match := pattern.match(plain.lower()))]
    if not fitting:
        return None
    # The first rule that fits is the most specific one; the catch-alls come last.
    match, questions = fitting[0] if rng.random() < 0.85 else rng.choice(fitting)
    question = rng.choice(_TABLE["reactions"]) + rng.choice(questions).format(
        *(_second_person(g) for g in match.groups(default=""))
    )
    opening = (
        rng.choice(("", "", "", "", "Well, ", "Yes, ", "Oh, "))
        if not question.startswith(("what", "who", "where"))
        else ""
    )
    said = plain if not opening or plain.startswith(("I ", "I'")) else plain[:1].lower() + plain[1:]
    answer = f"{opening}{said}{rng.choice(('.', '.', '.', '!'))}{rng.choice(_TABLE['tails'])}"
    return _unpunctuated(question, rng), answer


def _second_person(text: str) -> str:
    words: Sequence[str] = text.split()
    swap = {"my": "your", "i": "you", "me": "you", "am": "are", "myself": "yourself", "our": "your"}
    return " ".join(swap.get(word, word) for word in words)


def _unpunctuated(question: str, rng: random.Random) -> str:
    return question.rstrip("?") if rng.random() < 0.2 else question
