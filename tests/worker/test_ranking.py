"""Which of several replies is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.conversation import Role, Turn
from worker.ranking import Candidate, best, ngrams, repeated, score, shared

TURNS = (
    Turn(Role.BOT, "I live in a small town by the sea."),
    Turn(Role.USER, "What do you do on a rainy day in autumn?"),
)


def test_the_likeliest_is_said_where_nothing_is_repeated() -> None:
    candidates = [Candidate("I read a book.", -2.0), Candidate("I bake bread.", -1.5), Candidate("I sleep.", -3.0)]
    assert best(candidates, TURNS) == 1


@pytest.mark.parametrize(
    "repetition",
    [
        "I live in a small town by the sea.",  # what it said already
        "What do you do on a rainy day in autumn?",  # the person's words
        "I read and I read and I read and I read and I read.",  # itself
    ],
)
def test_what_repeats_gives_way_to_a_reply_that_is_a_little_less_likely(repetition: str) -> None:
    assert best([Candidate(repetition, -1.0), Candidate("I bake bread with my sister.", -1.4)], TURNS) == 1


def test_an_empty_reply_is_said_only_when_all_are_empty() -> None:
    assert best([Candidate("", 0.0), Candidate("Hm.", -9.0)], TURNS) == 1
    assert best([Candidate("", 0.0), Candidate("", -1.0)], TURNS) == 0


def test_the_head_of_a_checkpoint_takes_part() -> None:
    assert best([Candidate("I bake bread.", -1.0), Candidate("I sleep.", -1.2, fit=1.0)], TURNS) == 1


def test_words_count_as_the_same_whatever_their_case_and_punctuation() -> None:
    assert shared(ngrams("I LIVE in a, small town!"), [TURNS[0].text]) == 1.0


def test_a_short_reply_is_one_run_of_words() -> None:
    assert ngrams("Oh, yes!") == [("oh", "yes")]
    assert ngrams("...") == []


@given(st.text(max_size=80), st.lists(st.text(max_size=40), max_size=3))
def test_shares_lie_between_none_and_all(text: str, others: list[str]) -> None:
    grams = ngrams(text)
    assert 0.0 <= shared(grams, others) <= 1.0
    assert 0.0 <= repeated(grams) < 1.0
    assert score(Candidate(text, -1.0), ()) <= -1.0
