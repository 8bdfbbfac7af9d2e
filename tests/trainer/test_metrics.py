"""Every figure against values worked out by hand."""

import math

import pytest

from trainer.metrics import Said, copied, distinct, f1, hit_and_reciprocal_rank, normalised, repeated, reply_figures


def test_case_punctuation_and_articles_do_not_count() -> None:
    assert normalised("The  dog's a GOOD-boy, an' so!") == ["dog", "s", "good", "boy", "so"]


def test_f1_is_the_harmonic_mean_over_bags_of_words() -> None:
    # said: i have two dogs (4), wanted: i have a dog and two cats (6 without the article); i, have, two are shared
    assert f1("I have two dogs.", "i have a dog and two cats") == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert f1("no no no", "no") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert f1("the", "the") == 0.0
    assert f1("", "yes") == 0.0
    assert f1("Yes!", "yes") == 1.0


def test_distinct_counts_over_all_replies_together() -> None:
    assert distinct(["i am fine", "i am not"], 1) == pytest.approx(4 / 6)
    assert distinct(["i am fine", "i am not"], 2) == pytest.approx(3 / 4)
    assert distinct(["yes"], 2) == 0.0


def test_repetition_is_the_share_of_ngrams_said_before_in_the_reply() -> None:
    # six 4-grams, of which the last two have occurred: (a b c d), (b c d e)
    assert repeated("a b c d e a b c d e") == pytest.approx(1 - 5 / 7)
    assert repeated("a b c") == 0.0


def test_copying_looks_at_the_last_five_own_turns_only() -> None:
    own = ["i like to swim in the sea", *["no"] * 4]
    assert copied("I like to swim at night", own) == pytest.approx(1 / 3)
    assert copied("I like to swim at night", [*own, "no"]) == 0.0
    assert copied("No!", own) == 1.0
    assert copied("Well, no", own) == 0.0
    assert copied("", own) == 0.0


def test_a_constant_scorer_gets_one_in_twenty() -> None:
    hit, reciprocal = hit_and_reciprocal_rank([1.5] * 20, gold=19)
    assert hit == pytest.approx(0.05)
    assert reciprocal == pytest.approx(sum(1 / rank for rank in range(1, 21)) / 20)


def test_a_rank_is_one_more_than_the_number_of_better_candidates() -> None:
    assert hit_and_reciprocal_rank([-3.0, -1.0, -2.0], gold=2) == (0.0, 0.5)
    assert hit_and_reciprocal_rank([-3.0, -1.0, -2.0], gold=1) == (1.0, 1.0)
    assert hit_and_reciprocal_rank([-1.0, -1.0, -2.0], gold=0) == (0.5, 0.75)


def test_a_score_that_is_no_number_ranks_last() -> None:
    assert hit_and_reciprocal_rank([-3.0, math.nan], gold=1) == (0.0, 0.5)
    assert hit_and_reciprocal_rank([math.nan] * 20, gold=19)[0] == pytest.approx(0.05)


def test_reply_figures_are_means_over_the_replies() -> None:
    said = [
        Said("do you ski ?", "i ski", (), num_tokens=5, has_stopped=True),
        Said("", "hello", ("hello",), num_tokens=1, has_stopped=False),
    ]
    figures = reply_figures(said)
    assert figures["f1"] == pytest.approx((2 * 1 / (3 + 2)) / 2)
    assert (figures["empty"], figures["stopped"], figures["questions"]) == (0.5, 0.5, 0.5)
    assert (figures["mean_words"], figures["mean_tokens"], figures["num_replies"]) == (1.5, 3.0, 2)


def test_no_replies_at_all_are_zeros_not_an_error() -> None:
    assert set(reply_figures([]).values()) == {0}
