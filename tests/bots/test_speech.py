"""How a persona's words look as a message."""

from bots.speech import WORD_JOINER, Speech, signed, signed_in_markdown, without_pings


def test_the_name_stands_in_front_unless_the_platform_shows_it() -> None:
    assert signed(Speech("Ada", "hi"), "PersonaBot") == "Ada: hi"
    assert signed(Speech("Ada", "hi"), "ada") == "hi"
    assert signed(Speech("", "a notice"), "PersonaBot") == "a notice"


def test_a_name_cannot_break_the_markdown() -> None:
    assert signed_in_markdown(Speech("A*da_", "hi"), "Bot") == "**A\\*da\\_:** hi"


def test_a_code_block_starts_on_a_line_of_its_own() -> None:
    assert signed_in_markdown(Speech("Ada", "```py\n1\n```"), "Bot") == "**Ada:**\n```py\n1\n```"


def test_names_are_not_linked_and_addresses_stay() -> None:
    assert without_pings("hi @ann, mail a@b.c @@x @ y") == f"hi @{WORD_JOINER}ann, mail a@b.c @@{WORD_JOINER}x @ y"
