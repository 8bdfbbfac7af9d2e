"""Push and pull: what arrives elsewhere is what was there, or it does not arrive."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from personas.errors import CheckpointError, CheckpointRefused, RegistryError
from personas.lineage import Figure, Lineage, Verdict, Voice, Voices
from personas.registry import VOICES_FILE, Registry
from personas.remote import Follower, pull, push
from personas.voices import give, given_voices, read_voices, withdraw
from tests.helpers.bare_checkpoint import bare_checkpoint

REFUSED = Verdict(figures=(Figure(name="bpb_new", value=2.0, limit=1.5, unit="bits per byte"),))


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "here", shipped=tmp_path / "models")


@pytest.fixture
def there(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "there", shipped=tmp_path / "models")


def added(registry: Registry, tmp_path: Path, content: str, verdict: Verdict | None = None) -> str:
    folder = bare_checkpoint(tmp_path / "runs" / content, content)
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text(content)
    return registry.add(folder, "ada", Lineage(by="ann", verdict=verdict)).reference


def test_the_current_version_arrives_under_the_same_version(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    added(here, tmp_path, "one")
    two = here.promote(added(here, tmp_path, "two"))
    push(here, "ada@1", url)
    push(here, "ada", url)
    pulled = pull(there, "ada", url)
    assert (pulled.version, pulled.digest, pulled.lineage) == (two.version, two.digest, two.lineage)
    assert not pulled.is_current
    assert (pulled.folder / "extra" / "notes.txt").read_text() == "two"
    assert there.promote(pulled.reference).is_current
    assert pull(there, "ada", url).is_current
    assert pull(there, "ada@1", url).sequence == 1


def test_what_the_gate_refused_stays_refused_elsewhere(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    push(here, added(here, tmp_path, "one", REFUSED), url)
    with pytest.raises(CheckpointRefused):
        there.promote(pull(there, "ada@1", url).reference)


def test_what_was_damaged_on_the_way_does_not_arrive(here: Registry, there: Registry, tmp_path: Path, url: str) -> None:
    version = push(here, added(here, tmp_path, "one"), url)
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/ada/{version.version}/config.json", b"{ }")
    with pytest.raises(CheckpointError, match="not what it was"):
        pull(there, "ada@1", url)
    assert there.names() == []


def test_a_version_that_is_not_there_and_a_push_that_was_cut_short_are_named(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    with pytest.raises(RegistryError, match="no current version"):
        pull(there, "ada", url)
    version = push(here, added(here, tmp_path, "one"), url)
    files, root = fsspec.core.url_to_fs(url)
    files.rm_file(f"{root}/ada/{version.version}/lineage.json")
    with pytest.raises(RegistryError, match="There are: none"):
        pull(there, "ada@1", url)


def test_a_remote_can_not_write_outside_of_the_registry(here: Registry, there: Registry, tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    version = push(here, added(here, tmp_path, "one"), url)
    folder = tmp_path / "store" / "ada" / version.version
    lineage = (folder / "lineage.json").read_text()
    (folder / "lineage.json").write_text(lineage.replace('"config.json"', '"../../../../config.json"'))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        pull(there, "ada@1", url)
    (tmp_path / "store" / "ada" / "current.json").write_text('{"promotions": [{"version": "../evil"}]}')
    with pytest.raises(RegistryError):
        pull(there, "ada", url)


def test_a_store_that_nobody_knows_is_named_without_its_password(here: Registry, tmp_path: Path) -> None:
    reference = added(here, tmp_path, "one")
    with pytest.raises(RegistryError, match=r"crystal://\*\*\*@ball can't be used") as refused:
        push(here, reference, "crystal://ann:secret@ball")
    assert "secret" not in str(refused.value)


def test_a_damaged_version_is_not_pushed(here: Registry, tmp_path: Path, url: str) -> None:
    reference = added(here, tmp_path, "one")
    (here.version(reference).folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="damaged"):
        push(here, reference, url)


def test_a_follower_takes_what_becomes_current_elsewhere_and_nothing_else(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    one, two = added(here, tmp_path, "one"), added(here, tmp_path, "two")
    here.promote(one)
    push(here, one, url)
    follower = Follower(there, url)
    follower.look()
    assert there.version("ada").reference == one
    push(here, two, url)
    follower.look()
    assert there.version("ada").reference == one
    here.promote(two)
    push(here, two, url)
    follower.look()
    assert there.version("ada").reference == two
    there.rollback("ada")  # somebody here knows better, until something changes there
    follower.look()
    assert there.version("ada").reference == one
    here.rollback("ada")
    push(here, "ada", url)
    follower.look()
    assert there.version("ada").reference == one


def test_a_follower_gives_voices_as_they_are_given_elsewhere(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    reference = here.promote(added(here, tmp_path, "one")).reference
    for persona in ("Bob", "Eve"):
        give(here, persona, "ada", by="ann")
    push(here, reference, url)
    follower = Follower(there, url)
    follower.look()
    assert given_voices(there) == {"bob": "ada", "eve": "ada"}
    assert there.chosen() is None
    withdraw(there, "Eve")  # somebody here knows better, until something changes there
    withdraw(here, "Bob")
    follower.look()
    assert given_voices(there) == {"bob": "ada"}
    push(here, reference, url)
    Follower(there, url).look()  # after a restart as well
    assert given_voices(there) == {"eve": "ada"}


def test_a_voice_given_here_is_not_taken_away_by_a_store_that_knows_nothing_of_it(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    push(here, here.promote(added(here, tmp_path, "one")).reference, url)
    follower = Follower(there, url)
    follower.look()
    give(there, "Bob", "ada", by="ann")
    follower.look()
    assert given_voices(there) == {"bob": "ada"}


def test_a_voice_that_cannot_be_taken_keeps_no_other_from_being_followed(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    reference = here.promote(added(here, tmp_path, "one")).reference
    give(here, "Bob", "ada")
    push(here, reference, url)
    files, root = fsspec.core.url_to_fs(url)
    voices = (Voice(persona="Ann", checkpoint="never-pushed"), *read_voices(here).voices)
    files.pipe_file(f"{root}/{VOICES_FILE}", Voices(voices=voices).model_dump_json().encode())
    follower = Follower(there, url)
    follower.look()
    assert given_voices(there) == {"bob": "ada"}
    withdraw(there, "Bob")  # what somebody does here stays, however often the other one is tried again
    follower.look()
    assert given_voices(there) == {}


def test_a_follower_outlives_a_store_that_is_away_and_a_damaged_version(
    here: Registry, there: Registry, tmp_path: Path, url: str
) -> None:
    Follower(there, "crystal://ball").look()
    reference = here.promote(added(here, tmp_path, "one")).reference
    version = push(here, reference, url)
    files, root = fsspec.core.url_to_fs(url)
    path = f"{root}/ada/{version.version}/config.json"
    files.pipe_file(path, b"{ }")
    follower = Follower(there, url)
    follower.look()
    assert there.names() == []
    files.pipe_file(path, b"{}")
    with follower:
        assert there.version("ada").reference == reference
