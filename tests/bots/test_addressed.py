"""Who is meant, and what is left of the text once the mention is gone."""

import pytest

from bots.addressed import Sighting, is_addressed, utf16_span, without_discord_mention, without_spans


@pytest.mark.parametrize(
    ("sighting", "expected"),
    [
        (Sighting(), False),
        (Sighting(is_private=True), True),
        (Sighting(mentions_bot=True), True),
        (Sighting(replies_to_bot=True), True),
        (Sighting(is_private=True, is_by_program=True), False),
        (Sighting(mentions_bot=True, is_by_program=True), False),
        (Sighting(replies_to_bot=True, is_service_note=True), False),
    ],
)
def test_people_who_turn_to_the_bot_are_answered_and_nobody_else(sighting: Sighting, expected: bool) -> None:
    assert is_addressed(sighting) is expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<@1> hello", "hello"),
        ("<@!1>, hello", "hello"),
        ("<@1>: hello", "hello"),
        ("hello <@1>", "hello"),
        ("hello <@1>!", "hello!"),
        ("hey <@1>, how are you?", "hey, how are you?"),
        ("and you, <@1>?", "and you?"),
        ("ask <@1> about <@2>", "ask about <@2>"),
        ("<@1> <@1> hello", "hello"),
        ("<@1>...what", "...what"),
        ("<@12> hello", "<@12> hello"),
        ("<@1>\n- a\n- b", "- a\n- b"),
        ("<@1>", ""),
    ],
)
def test_the_own_mention_goes_without_a_trace(content: str, text: str) -> None:
    assert without_discord_mention(content, 1) == text


def test_entities_count_in_utf16_units() -> None:
    text = "😀 @bot hi"
    assert utf16_span(text, 3, 4) == (2, 6)
    assert without_spans(text, [utf16_span(text, 3, 4)]) == "😀 hi"
