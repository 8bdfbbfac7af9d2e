"""The text of a reply while its tokens come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from personas.layout import PersonaLayout
from tests.helpers.tiny_model import VOCABULARY_SIZE, tiny_tokenizer
from worker.streaming import TextStream, final_text, readable, without_begun_stop

TOKENIZER = tiny_tokenizer()
LAYOUT = PersonaLayout(TOKENIZER, max_tokens=256)
THEIRS = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(TOKENIZER))
# Bytes of characters are tokens of their own here, so random ids hold many halves of characters.
TOKENS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=30)
WRITTEN = st.text("ab \n\u00e9\U0001f41d", max_size=20).map(LAYOUT.encode)
STOPS = st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=2)


def heard(ids: list[int], stops: list[str]) -> tuple[list[str], list[int]]:
    """The pieces, and the tokens up to the one that ended the reply."""
    stream = TextStream(LAYOUT.decoded, stops)
    taken = []
    for token in ids:
        taken.append(token)
        if stream.hear(token):
            break
    stream.end()
    return list(stream.pieces()), taken


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.one_of(TOKENS, WRITTEN), STOPS)
def test_the_pieces_are_the_beginning_of_the_text_and_hold_no_halves(ids: list[int], stops: list[str]) -> None:
    pieces, taken = heard(ids, stops)
    whole = final_text(LAYOUT.decoded(taken), stops)
    assert whole.startswith("".join(pieces))
    assert not any(stop in whole for stop in stops)
    assert all(pieces)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(WRITTEN, STOPS)
def test_a_reply_ends_with_the_token_that_completes_a_stop_string(ids: list[int], stops: list[str]) -> None:
    _, taken = heard(ids, stops)
    before = LAYOUT.decoded(taken[:-1])
    assert not any(stop in before for stop in stops)
    assert len(taken) == len(ids) or any(stop in LAYOUT.decoded(taken) for stop in stops)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(WRITTEN, st.lists(st.text("ab \n", min_size=1, max_size=3), min_size=1, max_size=2))
def test_a_reply_ends_where_generate_would_end_it(ids: list[int], stops: list[str]) -> None:
    criteria = StopStringCriteria(THEIRS, stops)
    scores = torch.empty(0)
    lengths = [n for n in range(1, len(ids) + 1) if criteria(torch.tensor([ids[:n]]), scores).item()]
    _, taken = heard(ids, stops)
    assert len(taken) == (lengths[0] if lengths else len(ids))


def test_a_character_comes_when_its_last_byte_has_come() -> None:
    ids = LAYOUT.encode("bee \U0001f41d!")
    stream = TextStream(LAYOUT.decoded)
    for token in ids:
        stream.hear(token)
        assert "\ufffd" not in stream.told
    assert stream.told == "bee \U0001f41d!"


@pytest.mark.parametrize(
    ("text", "stops", "sure"),
    [
        ("hello Us", ["User:"], "hello "),
        ("hello", ["low"], "hel"),
        ("abc", [], "abc"),
        ("aa", ["aab", "b"], ""),
        ("x", ["y"], "x"),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str], sure: str) -> None:
    assert without_begun_stop(text, stops) == sure


def test_the_first_stop_string_cuts() -> None:
    assert final_text("one two three", ["three", "two"]) == "one"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("a\x00b\x1b[31m", "ab[31m"), ("cut \ufffd\ufffd", "cut"), (" two\nlines\t", "two\nlines"), ("\x07", "")],
)
def test_a_reply_holds_no_control_characters_and_no_half_characters(raw: str, shown: str) -> None:
    assert readable(raw) == shown
