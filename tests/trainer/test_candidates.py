"""Which wrong replies stand beside the right one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from personas.conversation import Role, Turn
from trainer.augment import spaced
from trainer.candidates import plain, wrong_replies
from trainer.formats import Choice, Dialogue, read_dialogues

DATA = Path(__file__).parent / "data"
OTHERS = tuple(read_dialogues(DATA / "personachat.jsonl"))
TALK = OTHERS[0]


def drawn(dialogue: Dialogue, others: tuple[Dialogue, ...], seed: int, number: int = 3) -> tuple[str, ...]:
    return wrong_replies(dialogue, 1, others, Role.BOT, number=number, rng=random.Random(seed))


@pytest.mark.parametrize("seed", range(10))
def test_no_candidate_says_the_same_as_the_right_reply_or_another(seed: int) -> None:
    right = next(turn.text for turn in TALK.turns if turn.role is Role.BOT)
    echo = Dialogue((), (Turn(Role.BOT, right.upper() + " !"),))
    found = [plain(text) for text in drawn(TALK, (*OTHERS, *[echo] * 20), seed)]
    assert len({*found, plain(right)}) == 4


def test_a_seed_gives_the_same_candidates_and_another_seed_others() -> None:
    assert drawn(TALK, OTHERS, 1) == drawn(TALK, OTHERS, 1)
    assert len({drawn(TALK, OTHERS, seed) for seed in range(8)}) > 4


def test_candidates_of_the_data_come_first() -> None:
    right = TALK.turns[1].text
    stored = Dialogue(TALK.facts, TALK.turns, choices=(Choice(right, ("stored one", "stored two", right)),))
    found = drawn(stored, OTHERS, 2)
    assert {text.replace(" ", "") for text in found[:2]} == {"storedone", "storedtwo"}
    assert len(found) == 3


def test_about_one_in_four_is_the_personas_own_from_far_away() -> None:
    own = [turn.text for turn in TALK.turns if turn.role is Role.BOT]
    others = tuple(dialogue for dialogue in OTHERS if dialogue is not TALK)
    found = [text for seed in range(200) for text in drawn(TALK, others, seed)]
    share = sum(plain(text) in {plain(o) for o in own} for text in found) / len(found)
    assert 0.15 < share < 0.35


def test_candidates_are_written_in_the_manner_of_the_dialogue() -> None:
    loose = Dialogue((), tuple(Turn(turn.role, spaced(turn.text)) for turn in TALK.turns))
    others = (Dialogue((), (Turn(Role.BOT, "no, never!"), Turn(Role.BOT, "well, yes."), Turn(Role.BOT, "a.b"))),)
    assert all(spaced(text) == text for text in drawn(loose, others, 5))


def test_where_there_are_too_few_replies_fewer_come_back() -> None:
    lonely = Dialogue((), (Turn(Role.USER, "hi"), Turn(Role.BOT, "hello")))
    assert drawn(lonely, (lonely,), 1) == ()
