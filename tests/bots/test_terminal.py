"""The terminal chat: turns, commands and seeds, with a partner that repeats what it was given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import DummyInput
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from bots.partner import LocalPartner, derived_seed
from bots.screens import ChatCompleter, PlainScreen, RichScreen, printable
from bots.terminal import COMMANDS, Chat, changed_settings, shown_settings
from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from worker.queue.reply import Tell

ADA = Persona(name="Ada", facts=("My name is Ada.",), greeting="Good day.")


@dataclass(frozen=True)
class Said:
    text: str
    seed: int | None
    model: str = "echo"


def echo(persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None) -> Said:
    return Said(f"{turns[-1].text}? ({len(turns)} turns)", settings.seed)


def partner(seed: int | None = 7) -> LocalPartner:
    return LocalPartner(echo, ADA, settings=GenerationSettings(seed=seed))


def chat(*lines: str, with_partner: LocalPartner | None = None) -> list[str]:
    out = io.StringIO()
    screen = PlainScreen(io.StringIO("".join(line + "\n" for line in lines)), out)
    Chat(with_partner or partner(), screen, load_catalogue(None)).run()
    return out.getvalue().splitlines()


def test_the_persona_greets_and_answers() -> None:
    assert chat("hello") == ["Ada: Good day.", "Ada: hello? (2 turns)"]


def test_the_history_grows_and_reset_empties_it() -> None:
    lines = chat("one", "two", "/reset", "three")
    assert [line for line in lines if "turns)" in line] == [
        "Ada: one? (2 turns)",
        "Ada: two? (4 turns)",
        "Ada: three? (2 turns)",
    ]


def test_quit_leaves_what_follows_unread() -> None:
    assert chat("/quit", "hello") == ["Ada: Good day."]


def test_an_empty_line_says_nothing() -> None:
    assert chat("", "   ") == ["Ada: Good day."]


def test_another_persona_takes_over_with_its_greeting() -> None:
    other = load_catalogue(None).get(load_catalogue(None).names()[0])
    lines = chat(f"/persona {other.name.lower()}", "hi")
    assert lines[1] == f"{other.name}: {other.greeting}"
    assert lines[2] == f"{other.name}: hi? (2 turns)"


def test_an_unknown_persona_is_refused_and_the_chat_goes_on() -> None:
    lines = chat("/persona Nobody Of That Name", "hi")
    assert lines[1].startswith("(")
    assert lines[2] == "Ada: hi? (2 turns)"


def test_persona_without_a_name_shows_who_speaks() -> None:
    assert chat("/persona")[1] == "(Ada: My name is Ada.)"


def test_regenerate_replaces_the_last_reply_with_another_seed() -> None:
    who = partner()
    first = who.say("hello")
    again = who.regenerate()
    assert again is not None
    assert again.seed != first.seed
    assert [turn.role for turn in who.turns] == [Role.BOT, Role.USER, Role.BOT]


def test_there_is_nothing_to_regenerate_before_the_first_message() -> None:
    assert chat("/regenerate")[1] == "(There is no reply to say differently yet.)"


def test_settings_change_and_unset() -> None:
    lines = chat(
        "/settings top_p 0.5",
        "/settings top-p default",
        "/settings top_p 7",
        "/settings colour red",
        with_partner=partner(None),
    )
    assert "top_p 0.5" in lines[1]
    assert "nothing" in lines[2]
    assert "less than or equal to 1" in lines[3]
    assert lines[4].startswith("(Usage: /settings NAME VALUE")


def test_settings_show_the_seed_that_was_given() -> None:
    assert chat("/settings")[1] == "(Set here: seed 7; the rest comes from the persona and the model.)"


def test_a_seed_that_is_set_on_the_way_holds_from_then_on() -> None:
    who = partner(None)
    chat("/settings seed 5", "hello", with_partner=who)
    assert who.say("again").seed == derived_seed(5, 1)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("bad_words damn, Damn", {"bad_words": ("damn", "Damn")}),
        ('stop_strings ["a, b", "\\n"]', {"stop_strings": ("a, b", "\n")}),
        ("logit_bias please=2, well = -3", {"logit_bias": {"please": 2.0, "well": -3.0}}),
        ("min_p = 0.1", {"min_p": 0.1}),
        ("candidates 4", {"candidates": 4}),
    ],
)
def test_settings_of_several_words_are_one_line(argument: str, expected: dict[str, object]) -> None:
    changed = changed_settings(GenerationSettings(), argument)
    assert changed == GenerationSettings(**expected)
    name, _, shown = shown_settings(changed).partition(" ")
    assert changed_settings(GenerationSettings(), f"{name} {shown}") == changed  # what is shown can be typed again


@pytest.mark.parametrize("argument", ["logit_bias please", "bad_words [1", "candidates 99", "logit_bias a=x"])
def test_a_setting_that_cannot_be_read_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=argument.split()[0]):
        changed_settings(GenerationSettings(), argument)


def test_a_reply_appears_as_it_comes_and_then_as_a_whole(tmp_path: Path) -> None:
    with create_app_session(input=DummyInput(), output=DummyOutput()):
        screen = RichScreen(history_file=tmp_path / "history", persona_names=["Ada"])
    out = io.StringIO()
    screen._console = Console(file=out, force_terminal=True, width=60)
    seen: list[str] = []

    def speak(persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None) -> Said:
        assert tell is not None
        for piece in ("Good ", "mor", "ning"):
            tell(piece)
            seen.append(out.getvalue())
        return Said("Good morning", 1)

    game = Chat(LocalPartner(speak, ADA, settings=GenerationSettings()), screen, load_catalogue(None))
    game._say("hello")
    assert ["Good mor" in text and "Good morning" not in text for text in seen] == [False, True, False]
    assert out.getvalue().rstrip().endswith("Good morning")


def test_through_a_pipe_nothing_is_told_before_the_whole() -> None:
    heard: list[object] = []

    def speak(persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None) -> Said:
        heard.append(tell)
        return Said("Good morning", 1)

    lines = chat("hello", with_partner=LocalPartner(speak, ADA, settings=GenerationSettings()))
    assert (heard, lines[-1]) == ([None], "Ada: Good morning")


def test_an_unknown_command_is_not_sent_to_the_model() -> None:
    assert chat("/persone Ada")[1] == "(There is no command /persone. Did you mean /persona?)"


def test_help_lists_every_command() -> None:
    text = "\n".join(chat("/help"))
    assert all(f"  {command.help}" in text for command in COMMANDS.values() if not command.is_alias)
    for name in ("/persona", "/reset", "/regenerate", "/settings", "/help", "/quit"):
        assert name in text


def test_seeds_derive_from_the_first_and_the_position() -> None:
    one, two = partner(7), partner(7)
    seeds = [one.say("a").seed, one.say("b").seed]
    assert [two.say("x").seed, two.say("y").seed] == seeds
    assert len({*seeds, partner(8).say("a").seed}) == 3
    assert seeds[0] == derived_seed(7, 0)


def test_without_a_seed_every_reply_has_one_of_its_own() -> None:
    who = partner(None)
    assert who.say("a").seed != who.say("a").seed


def test_a_message_that_could_not_be_answered_is_not_remembered() -> None:
    def fail(*_: object) -> Said:
        raise KeyboardInterrupt

    who = LocalPartner(fail, ADA, settings=GenerationSettings())
    with pytest.raises(KeyboardInterrupt):
        who.say("hello")
    assert [turn.text for turn in who.turns] == ["Good day."]


def test_ctrl_c_stops_the_reply_and_not_the_chat() -> None:
    calls: list[str] = []

    def first_interrupted(
        persona: Persona, turns: Sequence[Turn], settings: GenerationSettings, tell: Tell | None = None
    ) -> Said:
        calls.append(turns[-1].text)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return echo(persona, turns, settings)

    who = LocalPartner(first_interrupted, ADA, settings=GenerationSettings())
    assert chat("one", "two", with_partner=who)[1:] == ["(Stopped waiting for the reply.)", "Ada: two? (2 turns)"]


def test_replies_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\nd\x9b") == "a[2Jbc\nd"


def test_commands_and_names_complete() -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    completer = ChatCompleter(["Ada Lovelace", "Boone"])

    def offers(text: str) -> list[str]:
        return [found.text for found in completer.get_completions(Document(text), CompleteEvent())]

    assert offers("/re") == ["regenerate", "reset", "retrain"]
    assert offers("/persona ad") == ["Ada Lovelace"]
    assert offers("hello /re") == []


def test_changed_settings_take_both_spellings() -> None:
    assert changed_settings(GenerationSettings(), "max-new-tokens=5").max_new_tokens == 5
