"""Questions about the persona put into training dialogues."""

from __future__ import annotations

import random

import pytest

from personas.conversation import Role, Turn
from trainer.augment import is_trained_wording, spaced, with_name, with_questions
from trainer.formats import Dialogue

TALK = Dialogue(
    ("I live in Oslo.", "I have a cat named Miso."),
    (Turn(Role.USER, "hi"), Turn(Role.BOT, "hello"), Turn(Role.USER, "nice day"), Turn(Role.BOT, "yes")),
)


def test_spacing_follows_the_files_of_convai2() -> None:
    assert spaced("i'm good, thanks! and you?") == "i'm good , thanks ! and you ?"


def test_a_name_is_given_once_and_stands_among_the_facts() -> None:
    named = with_name(TALK, random.Random(3))
    assert named.name.split()[0] in " ".join(named.facts)
    assert with_name(named, random.Random(4)) is named


@pytest.mark.parametrize("seed", range(20))
def test_inserted_questions_keep_speakers_alternating_and_are_answered_from_the_persona(seed: int) -> None:
    dialogue = with_questions(
        with_name(TALK, random.Random(seed)), random.Random(seed), num_questions=2, is_lower=False
    )
    roles = [turn.role for turn in dialogue.turns]
    new = [turn.text for turn in dialogue.turns if turn.role is Role.BOT and turn not in TALK.turns]
    assert roles == [Role.USER, Role.BOT] * (len(roles) // 2)
    assert len(new) == 2
    assert all(any(word in text for word in ("Oslo", "Miso", *dialogue.name.split())) for text in new)


def test_questions_in_lower_case_dialogue_are_lower_case() -> None:
    dialogue = with_questions(with_name(TALK, random.Random(1)), random.Random(1), num_questions=3, is_lower=True)
    assert all(turn.text == turn.text.lower() for turn in dialogue.turns)


def test_a_question_from_the_table_is_known_as_trained_and_another_is_not() -> None:
    assert is_trained_wording("What's your name")
    assert is_trained_wording("do you have a favorite ice cream?")
    assert is_trained_wording("so what is your name?")
    assert not is_trained_wording("hand on heart, whom do I have the honour to meet?")
