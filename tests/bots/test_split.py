"""Splitting: nothing is lost, nothing is too long, fences and clusters stay whole."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots.split import split, utf16_length

words = st.text(alphabet="abc .,!?\n\t", max_size=400)
anything = st.text(max_size=400)
SEEN_AS_ONE = ["👩\u200d👩\u200d👧", "🇩🇪", "e\u0301", "👍🏽", "a", " ", "क्षि", "\n", "각"]
clusters = st.lists(st.sampled_from(SEEN_AS_ONE), max_size=200).map("".join)
blocks = st.tuples(
    st.sampled_from(["```", "````"]),
    st.sampled_from(["py", "c++", ""]),
    st.text(alphabet="xyz =\n  ", min_size=1, max_size=200),
).map(lambda block: f"{block[0]}{block[1]}\n{block[2]}\n{block[0]}")
fenced = st.lists(st.one_of(blocks, st.text(alphabet="ab .\n", max_size=120)), max_size=6).map("\n".join)


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(st.one_of(words, anything, clusters, fenced), st.integers(64, 300))
def test_no_part_is_longer_than_the_limit_or_empty(text: str, limit: int) -> None:
    for part in split(text, limit):
        assert utf16_length(part) <= limit
        assert part.strip()


@given(st.one_of(words, clusters), st.integers(64, 300))
def test_nothing_but_whitespace_is_dropped(text: str, limit: int) -> None:
    assert squeezed("".join(split(text, limit))) == squeezed(text)


@given(fenced, st.integers(64, 300))
def test_every_part_has_its_fences_closed_and_no_code_is_lost(text: str, limit: int) -> None:
    parts = split(text, limit)
    for part in parts:
        assert len(re.findall(r"`{3,}", part)) % 2 == 0
    without_fences = re.sub(r"`{3,}(py|c\+\+)?(?=\s|$)", "", "\n".join(parts))
    assert squeezed(without_fences) == squeezed(re.sub(r"`{3,}(py|c\+\+)?(?=\s|$)", "", text))


@given(clusters, st.integers(64, 100))
def test_what_a_reader_sees_as_one_character_is_never_cut(text: str, limit: int) -> None:
    for part in split(text, limit):
        assert not re.match("[\u200d\u0301\U0001f3fd\u094d\u093f]", part)
        assert not part.endswith("\u200d")
        assert len(re.findall("[\U0001f1e6-\U0001f1ff]", part)) % 2 == 0


def test_a_short_text_stays_as_it_is() -> None:
    assert split("  one\n\ntwo ```", 2000) == ["  one\n\ntwo ```"]


def test_an_empty_text_gives_no_message() -> None:
    assert split(" \n ", 2000) == []


def test_lone_surrogates_are_replaced_and_pairs_joined() -> None:
    assert split("a\ud83d b \ud83d\ude00", 2000) == ["a\ufffd b 😀"]


def test_emoji_count_twice() -> None:
    assert [len(part) for part in split("😀" * 100, 100)] == [50, 50]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 40 + "\n\n" + "b " * 20, "a" * 40),
        ("a" * 40 + "\n" + "b " * 20, "a" * 40),
        ("One is here now. " * 2 + "Two " + "b" * 60, "One is here now. One is here now."),
        ("word " * 20, "word " * 11 + "word"),
        ("x" * 100, "x" * 64),
    ],
)
def test_paragraphs_lines_sentences_and_words_are_kept_where_they_fit(text: str, first: str) -> None:
    assert split(text, 64)[0] == first


def test_a_broken_code_block_is_closed_and_reopened_in_its_language() -> None:
    code = "\n".join(f"line{number} = {number}" for number in range(20))
    parts = split(f"Look:\n```python\n{code}\n```\nDone.", 100)
    assert len(parts) > 2
    assert all(part.startswith("```python\n") for part in parts[1:-1])
    assert all(part.endswith("\n```") for part in parts[:-1])
    assert parts[-1].endswith("Done.")


def test_indentation_survives_a_cut_in_code() -> None:
    code = "\n".join("    indented" for _ in range(20))
    for part in split(f"```\n{code}\n```", 80):
        assert re.fullmatch(r"```\n(    indented\n)+```", part)


def test_a_code_block_that_would_leave_only_its_first_line_moves_on_whole() -> None:
    parts = split("word " * 11 + "\n```py\nvalue = 1\nother = 2\n```", 64)
    assert parts == ["word " * 10 + "word", "```py\nvalue = 1\nother = 2\n```"]


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        split("text", 10)


def test_a_block_that_moves_to_the_next_message_leaves_no_fence_open_behind_the_block_before_it() -> None:
    text = "```py\n======\n```\n```py\n=\n\n=\n```\n```py\n==============\n```\n```py\n==================\n```"
    assert all(part.count("```") % 2 == 0 for part in split(text, 64))
