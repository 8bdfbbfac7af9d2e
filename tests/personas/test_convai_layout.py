"""The layout of TransferTransfo: golden ids against its published rule, types by role, one example a reply."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from personas.conversation import Role, Turn
from personas.layout import ConvaiLayout, Part, layout_for_hf_folder
from tests.helpers.layouts import tokenizer_json
from tests.personas.test_layout import FACTS, TALK, facts, spelled, turns

LAYOUT = ConvaiLayout(tokenizer_json(), max_tokens=256)
BOS, EOS, BOT, USER = (LAYOUT._markup.token_to_id(t) for t in ("<bos>", "<eos>", "<speaker1>", "<speaker2>"))


def published(facts: list[str], history: list[str], reply: str) -> tuple[list[int], list[int]]:
    """Build ids and types as `build_input_from_segments` of huggingface/transfer-learning-conv-ai describes them."""
    persona = [BOS, *LAYOUT.encode(" ".join(facts))]
    segments = [*(LAYOUT.encode(text) for text in history), [*LAYOUT.encode(reply), EOS]]
    count = len(segments)
    marked = [[USER if (count - i) % 2 == 0 else BOT, *s] for i, s in enumerate(segments)]
    # Persona and first turn, second turn, ...: the types alternate from the front.
    types = [USER if i % 2 else BOT for i, segment in enumerate([persona, *marked]) for _ in segment]
    return [*persona, *(token for segment in marked for token in segment)], types


def test_ids_and_types_are_the_published_ones_where_the_user_speaks_first() -> None:
    talk = [*TALK, Turn(Role.BOT, "I am Ada.")]
    *_, last = LAYOUT.examples_of(FACTS, talk, max_tokens=256)
    ids, types = published(list(FACTS), [turn.text for turn in TALK], "I am Ada.")
    assert last.ids == ids
    assert LAYOUT.token_types(last.ids) == types


def test_only_the_reply_and_its_end_are_targets() -> None:
    first, second = LAYOUT.examples_of(FACTS, [*TALK, Turn(Role.BOT, "I am Ada.")], max_tokens=256)
    for example, text in ((first, "hi!"), (second, "I am Ada.")):
        labelled = [i for i, part in zip(example.ids, example.parts, strict=True) if part is not Part.CONTEXT]
        assert labelled == [*LAYOUT.encode(text), EOS]
        assert example.ids[example.replies[0].start : example.replies[0].stop + 1] == labelled
        assert example.texts == (text,)


def test_history_turns_carry_no_end() -> None:
    prompt = LAYOUT.prompt(FACTS, TALK, max_tokens=256, reserve=20)
    assert spelled(LAYOUT, prompt.ids) == (
        "<bos>My name is Ada. I keep bees.<speaker2>hello<speaker1>hi!<speaker2>who are you?<speaker1>"
    )
    assert prompt.types is not None
    assert prompt.types[-1] == BOT


def test_types_follow_roles_where_the_bot_speaks_first() -> None:
    ids = LAYOUT.prompt((), [Turn(Role.BOT, "hi"), Turn(Role.USER, "yo")], max_tokens=99, reserve=9).ids
    speakers = [i for i in ids if i in (BOT, USER)]
    types = LAYOUT.token_types(ids)
    assert speakers == [BOT, USER, BOT]
    assert [types[place] for place, i in enumerate(ids) if i in (BOT, USER)] == speakers


def test_a_bounded_history_counts_turns_as_transfertransfo_does() -> None:
    talk = [Turn(Role.USER if i % 2 == 0 else Role.BOT, f"turn {i}") for i in range(12)]
    *_, last = LAYOUT.examples_per_reply(FACTS, talk, max_tokens=256, max_history=2)
    assert [i for i in last.ids if i in (BOT, USER)] == [USER, BOT, USER, BOT, USER, BOT]
    assert "turn 6" in spelled(LAYOUT, last.ids)
    assert "turn 5" not in spelled(LAYOUT, last.ids)


@settings(max_examples=60, deadline=None)
@given(facts, turns)
def test_training_and_serving_encode_alike(facts: list[str], turns: list[Turn]) -> None:
    talk = [*turns, Turn(Role.USER, "and?", author_id="1"), Turn(Role.BOT, "The bees are asleep.")]
    *_, last = LAYOUT.examples_of(facts, talk, max_tokens=4000)
    prompt = LAYOUT.prompt(facts, talk[:-1], max_tokens=4000, reserve=10)
    assert last.ids[: len(prompt.ids)] == prompt.ids
    assert LAYOUT.token_types(last.ids)[: len(prompt.ids)] == prompt.types


def test_examples_fit_a_small_window_and_none_is_lost() -> None:
    talk = [Turn(Role.USER if i % 2 == 0 else Role.BOT, f"turn number {i}, a little longer") for i in range(20)]
    examples = LAYOUT.examples_of(FACTS, talk, max_tokens=90)
    assert len(examples) == 10
    assert max(len(example.ids) for example in examples) <= 90


@pytest.mark.parametrize(("architecture", "name"), [("GPT2DoubleHeadsModel", "convai"), ("GPT2LMHeadModel", "persona")])
def test_a_folder_with_two_heads_is_taken_for_a_published_one(tmp_path: Path, architecture: str, name: str) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    assert layout_for_hf_folder(tmp_path, max_tokens=99).name == name
