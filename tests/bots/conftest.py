"""What adapter tests need: a catalogue of two, services on a real server, a scripted worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bots.services import Services
from personas.catalogue import Catalogue
from personas.settings import Settings
from tests.helpers.answering import Script, scripted_worker

ADA = (
    "name: Ada\ndescription: A mathematician\nfacts: [My name is Ada., I write programs.]\ngreeting: Hello, I am Ada.\n"
)
BOB = "name: Bob\nfacts: [My name is Bob., I bake bread.]\ngreeting: Bob here. Fresh bread?\n"


@pytest.fixture
def personas_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "personas"
    folder.mkdir()
    (folder / "ada.yaml").write_text(ADA, encoding="utf-8")
    (folder / "bob.yaml").write_text(BOB, encoding="utf-8")
    return folder


@pytest.fixture
def catalogue(personas_dir: Path) -> Catalogue:
    return Catalogue.load(personas_dir)


@pytest.fixture
def worker(redis_server: str, catalogue: Catalogue) -> Iterator[Script]:
    with scripted_worker(redis_server, catalogue, "Ada") as script:
        yield script


@pytest.fixture
async def services(redis_server: str, catalogue: Catalogue, tmp_path: Path) -> AsyncIterator[Services]:
    settings = Settings(data_dir=tmp_path, redis_url=redis_server, default_persona="Ada")
    opened = Services.open(settings, redis_server)
    opened = replace(opened, catalogue=catalogue, reply_deadline_s=60)
    yield opened
    await opened.close()
