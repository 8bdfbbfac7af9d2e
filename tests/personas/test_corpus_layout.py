"""The layout of plain text: it goes on as it was written, in blocks, and ends where a text ends."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from personas.conversation import Role, Turn
from personas.layout import CorpusLayout, Part
from tests.helpers.layouts import tokenizer_json
from tests.personas.test_layout import spelled, turns

LAYOUT = CorpusLayout(tokenizer_json(), max_tokens=128)
[END] = LAYOUT.stop_ids


def text_of(text: str) -> list[Turn]:
    return [Turn(Role.BOT, text)]


def test_a_prompt_is_just_the_text() -> None:
    prompt = LAYOUT.prompt(["My name is Ada."], [Turn(Role.USER, "The bees")], max_tokens=128, reserve=20)
    assert spelled(LAYOUT, prompt.ids) == "<eos>\nThe bees"


def test_what_the_voice_says_goes_on_in_the_same_line() -> None:
    talk = [Turn(Role.USER, "The bees"), Turn(Role.BOT, "are asleep."), Turn(Role.USER, "And you")]
    prompt = LAYOUT.prompt((), talk, max_tokens=128, reserve=20)
    assert spelled(LAYOUT, prompt.ids) == "<eos>\nThe bees are asleep.\nAnd you"


@given(st.integers(1, 400), st.integers(20, 60))
@settings(max_examples=30, deadline=None)
def test_every_token_is_a_target_exactly_once_in_blocks_that_fit(num_words: int, max_tokens: int) -> None:
    text = "bees " * num_words
    examples = LAYOUT.examples_of((), text_of(text.strip()), max_tokens=max_tokens)
    assert all(len(example.ids) <= max_tokens and example.ids[0] == END for example in examples)
    assert all(example.parts[0] is Part.CONTEXT for example in examples)
    joined = list(itertools.chain.from_iterable(example.ids[1:] for example in examples))
    assert joined == [*LAYOUT.encode(f" {text.strip()}"), END]
    assert all(part is not Part.CONTEXT for example in examples for part in example.parts[1:])


def test_a_text_that_ends_in_white_space_goes_on() -> None:
    [open_one] = LAYOUT.examples_of((), text_of("The bees are asleep.\n\n"), max_tokens=128)
    [ended] = LAYOUT.examples_of((), text_of("The bees are asleep."), max_tokens=128)
    assert Part.STOP not in open_one.parts
    assert spelled(LAYOUT, open_one.ids).endswith("asleep.\n\n")
    assert (ended.ids[-1], ended.parts[-1]) == (END, Part.STOP)


@given(turns)
@settings(max_examples=60, deadline=None)
def test_training_and_serving_encode_alike(turns: list[Turn]) -> None:
    talk = [*turns, Turn(Role.USER, "and?", author_id="1"), Turn(Role.BOT, "The bees are asleep.")]
    [example] = LAYOUT.examples_of((), talk, max_tokens=4000)
    prompt = LAYOUT.prompt((), talk[:-1], max_tokens=4000, reserve=10)
    assert example.ids[: len(prompt.ids)] == prompt.ids


def test_only_the_voice_itself_is_learnt() -> None:
    talk = [Turn(Role.USER, "Where?"), Turn(Role.BOT, "On a hill.")]
    [example] = LAYOUT.examples_of((), talk, max_tokens=128)
    labelled = [i for i, part in zip(example.ids, example.parts, strict=True) if part is not Part.CONTEXT]
    assert labelled == [*LAYOUT.encode(" On a hill."), END]
