"""A persona's own voice from the chat: given, shown, heard in a comparison, rolled back and taken away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bots.command import Caller, Response
from bots.commands import run
from bots.job_card import card
from bots.services import Services
from bots.typed import read_command
from personas.catalogue import Catalogue
from personas.conversation import Conversation
from personas.voices import given_voices
from tests.helpers.bare_checkpoint import bare_checkpoint
from worker.queue.job import Job, Order, State
from worker.queue.loaded import LoadedState, RedisBoard

ADMIN = Caller(Conversation("discord", "42"), "7", "Ann", is_group=True)


@pytest.fixture
def shop(services: Services, tmp_path: Path) -> Services:
    """Services with a checkpoint `baker`, which is current, and `general`, which answers everybody."""
    registry = services.workshop.registry
    for name in ("baker", "general"):
        registry.promote(registry.add(bare_checkpoint(tmp_path / name, name), name).reference)
    registry.choose("general")
    return replace(services, admins=frozenset({"discord:7"}))


async def say(services: Services, line: str) -> Response:
    name, _, rest = line.partition(" ")
    command, arguments = read_command(name, rest)
    assert command is not None
    return await run(services, command, ADMIN, arguments)


async def test_a_voice_is_given_shown_and_taken_away(shop: Services) -> None:
    registry = shop.workshop.registry
    version = registry.version("baker")
    assert (await say(shop, "model use baker persona=bob")).text == f"{version.reference} speaks as Bob from now on."
    assert registry.chosen() == "general"
    assert "(1 version), speaks as Bob" in (await say(shop, "model list")).text
    loaded = LoadedState("baker", version.digest, version.reference, ("baker",), 1.0, 1)
    RedisBoard(shop.workshop.jobs.redis, "host:1").show([loaded])
    status = (await say(shop, "status")).text
    assert f"• host:1: {version.reference} ({version.digest}) for Bob" in status
    assert "Voices: Bob with baker" in status
    assert (await say(shop, "model unvoice bob")).text == "Bob no longer speaks with baker."
    assert "speaks as" not in (await say(shop, "model list")).text
    assert "Voices" not in (await say(shop, "status")).text
    assert "was given no voice" in (await say(shop, "model unvoice bob")).text


async def test_rolling_back_the_only_version_of_a_voice_leaves_the_default(shop: Services) -> None:
    await say(shop, "model use baker persona=bob")
    assert "Bob will speak with the default again" in (await say(shop, "model rollback baker")).text
    assert given_voices(shop.workshop.registry) == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model use baker persona=Nobody", "no persona called"),
        ("model use none persona=Bob", "no checkpoint called"),
        ("model unvoice Nobody", "Nobody was given no voice"),
    ],
)
async def test_what_cannot_be_is_explained(shop: Services, line: str, said: str) -> None:
    assert said in (await say(shop, line)).text
    assert given_voices(shop.workshop.registry) == {}


async def test_the_personas_file_that_comes_first_and_a_corpus_are_mentioned(
    shop: Services, personas_dir: Path
) -> None:
    with (personas_dir / "bob.yaml").open("a") as file:
        file.write("checkpoint: general\n")
    shop = replace(shop, catalogue=Catalogue.load(personas_dir))
    layout = shop.workshop.registry.version("baker").folder / "layout.json"
    layout.write_text('{"name": "corpus"}')
    text = (await say(shop, "model use baker persona=bob")).text
    assert "once the line checkpoint: general is gone from the persona's file" in text
    assert "follows no conversation" in text


async def test_who_pins_a_version_in_a_file_is_listed_under_its_name(shop: Services, personas_dir: Path) -> None:
    with (personas_dir / "bob.yaml").open("a") as file:
        file.write("checkpoint: baker@1\n")
    shop = replace(shop, catalogue=Catalogue.load(personas_dir))
    assert "(1 version), speaks as Bob" in (await say(shop, "model list")).text


async def test_a_voice_is_compared_as_its_persona(shop: Services) -> None:
    await say(shop, "model use baker persona=bob")
    await say(shop, "model compare general baker@1")
    [job] = shop.workshop.jobs.newest()
    assert (job.order.base.partition("@")[0], job.order.other.partition("@")[0]) == ("general", "baker")
    assert job.order.persona == "Bob"


async def test_a_damaged_list_of_voices_hides_nothing_else(shop: Services) -> None:
    (shop.workshop.registry.folder / "voices.json").write_text("{")
    assert "▸ general" in (await say(shop, "model list")).text
    assert "Workers: 0" in (await say(shop, "status")).text


def test_the_end_of_a_voices_job_says_who_speaks_with_it() -> None:
    job = Job("12345678", Order("baker", "", "voice", persona="Bob"), State.PROMOTED, result={"version": "baker@1"})
    assert "Promoted: baker@1 speaks as Bob from the next message on, and as nobody else." in card(job)[0]
