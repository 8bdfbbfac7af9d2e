"""The command layer without any platform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bots.command import Button, Caller, Permission, Response
from bots.commands import COMMANDS, MAX_SUGGESTIONS, find, pressed, run
from bots.persona_commands import digest, suggest_personas
from bots.services import Services
from personas.catalogue import Catalogue
from personas.conversation import Conversation, Role, Turn

HERE = Conversation("paper", "1")
MODERATOR = Caller(HERE, "7", "Ann", is_moderator=True, is_group=True, call_id="1")
MEMBER = Caller(HERE, "8", "Ben", is_group=True, call_id="2")


async def say(services: Services, name: str, caller: Caller = MODERATOR, /, **arguments: str) -> Response:
    command = find(name)
    assert command is not None
    return await run(services, command, caller, arguments)


def test_only_what_changes_the_conversation_for_all_needs_a_moderator() -> None:
    guarded = {command.name for command in COMMANDS if command.permission is Permission.MODERATOR}
    assert guarded == {"persona set", "reset"}


def test_every_button_fits_into_64_bytes_and_leads_back(many: Catalogue) -> None:
    for name in many.names():
        data = Button(name, "persona set", digest(name)).data
        assert len(data.encode()) <= 64
        command, arguments = pressed(data) or pytest.fail("not recognised")
        assert command.name == "persona set"
        assert arguments == {"name": digest(name)}
    assert pressed("something else") is None


async def test_a_name_is_found_however_it_is_written_and_a_wrong_one_gets_suggestions(services: Services) -> None:
    assert "Bob takes over" in (await say(services, "persona set", name="  bOB ")).text
    assert "Ada" in (await say(services, "persona set", name="Adda")).text
    assert "Ada takes over" in (await say(services, "persona set", name=digest("Ada"))).text


async def test_setting_the_same_persona_again_forgets_nothing(services: Services) -> None:
    await say(services, "persona set", name="Bob")
    services.store.append(HERE, Turn(Role.USER, "hello"))
    again = await say(services, "persona set", name="Bob")
    assert again.is_private
    assert len(services.store.history(HERE)) == 2


async def test_members_are_refused_in_private(services: Services) -> None:
    for name in ("persona set", "reset"):
        refused = await say(services, name, MEMBER, name="Bob")
        assert refused.is_private
        assert "moderators" in refused.text


async def test_reset_forgets_and_greets(services: Services) -> None:
    services.store.append(HERE, Turn(Role.USER, "hello"))
    response = await say(services, "reset")
    assert response.speech is not None
    assert [turn.text for turn in services.store.history(HERE)] == ["Hello, I am Ada."]


async def test_there_is_nothing_to_regenerate_in_an_empty_conversation(services: Services) -> None:
    assert "no reply" in (await say(services, "regenerate")).text


@pytest.fixture
def many(tmp_path: Path) -> Catalogue:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(30):
        name = f"Ünïcödé Persona With A Rather Long Name Number {index:02}"
        (folder / f"p{index:02}.yaml").write_text(f"name: {name}\n", encoding="utf-8")
    return Catalogue.load(folder)


async def test_the_list_has_pages_and_at_most_25_buttons(services: Services, many: Catalogue) -> None:
    crowded = replace(services, catalogue=many)
    pages = [await say(crowded, "persona list", page=page) for page in ("", "2", "99")]
    assert [page.text.splitlines()[0] for page in pages] == [
        "Personas (1 of 3):",
        "Personas (2 of 3):",
        "Personas (3 of 3):",
    ]
    for page in pages:
        assert len(page.buttons) <= 5
        assert all(len(row) <= 5 for row in page.buttons)
    assert [button.label for button in pages[1].buttons[-1]][-2:] == ["◀", "▶"]
    assert len(suggest_personas(crowded, "")) == MAX_SUGGESTIONS
