"""The catalogue: what is shipped, looking up, the operator's own files."""

import subprocess
import sys
from pathlib import Path

import pytest

from personas.catalogue import SHIPPED, Catalogue, Entry, PersonaFileError, UnknownPersona, load_catalogue


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(None)


def write(folder: Path, name: str, *, file: str = "", extra: str = "") -> Path:
    path = folder / (file or f"{name.lower()}.yaml")
    path.write_text(f"name: {name}\nfacts: [I am {name}.]\n{extra}", encoding="utf-8")
    return path


def test_a_dozen_or_more_personas_are_shipped(catalogue: Catalogue) -> None:
    assert len(catalogue) >= 12
    assert catalogue.names() == sorted(catalogue.names(), key=str.casefold)


@pytest.mark.parametrize("entry", load_catalogue(None), ids=lambda entry: entry.file.stem)
def test_a_shipped_persona_is_complete(entry: Entry) -> None:
    persona = entry.persona
    assert entry.is_shipped
    assert 4 <= len(persona.facts) <= 7
    assert persona.facts[0].startswith(f"My name is {persona.name}.")
    assert all(fact.endswith(".") and len(fact.split()) <= 8 for fact in persona.facts)
    assert persona.description
    assert persona.greeting
    assert persona.examples
    assert persona.checkpoint is None


def test_no_shipped_fact_or_greeting_stands_twice(catalogue: Catalogue) -> None:
    for texts in (
        [entry.persona.greeting for entry in catalogue],
        [example.bot for entry in catalogue for example in entry.persona.examples],
    ):
        assert len(set(texts)) == len(texts)
    facts = [fact for entry in catalogue for fact in entry.persona.facts]
    assert len(set(facts)) == len(facts)


@pytest.mark.parametrize("name", ["Mara Voss", "  mara   VOSS ", "mara_voss", "Mara"])
def test_a_persona_is_found_by_name_file_and_first_name(catalogue: Catalogue, name: str) -> None:
    assert catalogue.get(name).name == "Mara Voss"


def test_an_unknown_name_comes_with_close_ones(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownPersona, match="Did you mean Rusty") as caught:
        catalogue.get("rustie")
    assert caught.value.close == ("Rusty",)
    with pytest.raises(UnknownPersona, match="Mara Voss"):
        catalogue.get("marra")


@pytest.mark.parametrize("name", ["", "   ", "qqqq"])
def test_a_name_that_resembles_nobody_says_where_to_look(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(UnknownPersona, match="list of personas"):
        catalogue.get(name)


def test_a_first_name_of_two_personas_finds_neither(tmp_path: Path) -> None:
    write(tmp_path, "Ana Ruiz")
    write(tmp_path, "Ana Sol")
    with pytest.raises(UnknownPersona) as caught:
        Catalogue.load(tmp_path).get("ana")
    assert set(caught.value.close) == {"Ana Ruiz", "Ana Sol"}


def test_search_puts_beginnings_first_then_words_then_the_rest(catalogue: Catalogue) -> None:
    assert catalogue.search("m")[:3] == ["Mara Voss", "Marlowe Finch", "Haruki Mori"]
    assert catalogue.search("arlow") == ["Marlowe Finch"]
    assert catalogue.search("zzz") == []


def test_search_keeps_to_the_limit_and_shows_all_for_nothing(catalogue: Catalogue) -> None:
    assert catalogue.search("", limit=25) == catalogue.names()[:25]
    assert catalogue.search("", limit=3) == catalogue.names()[:3]


def test_an_operators_persona_joins_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, "Zed")
    both = load_catalogue(tmp_path)
    assert len(both) == len(load_catalogue(None)) + 1
    assert not both.entry("zed").is_shipped


def test_an_operators_persona_replaces_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, "rusty", file="mine.yml", extra="greeting: Hey.\n")
    both = load_catalogue(tmp_path)
    assert both.get("Rusty").greeting == "Hey."
    assert len(both) == len(load_catalogue(None))


def test_one_name_in_two_files_of_a_folder_is_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path, "Zed", file="a.yaml"), write(tmp_path, "ZED", file="b.yaml")
    with pytest.raises(PersonaFileError) as caught:
        Catalogue.load(tmp_path)
    assert str(caught.value) == f"{second}:1: name: expected another name, {first} has this one"


def test_the_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("nam: A\n")
    (tmp_path / "b.yaml").write_text("- b\n")
    with pytest.raises(PersonaFileError) as caught:
        load_catalogue(tmp_path)
    assert {Path(problem.file).name for problem in caught.value.problems} == {"a.yaml", "b.yaml"}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PersonaFileError, match="expected a persona file, or a folder of them"):
        load_catalogue(tmp_path / "nowhere")


def test_only_yaml_files_that_are_not_hidden_are_read(tmp_path: Path) -> None:
    write(tmp_path, "Zed")
    (tmp_path / "notes.txt").write_text("not a persona")
    (tmp_path / ".draft.yaml").write_text("- not a persona")
    assert Catalogue.load(tmp_path).names() == ["Zed"]


def test_the_catalogue_loads_no_model_library() -> None:
    code = (
        "import sys, personas.catalogue as c; c.load_catalogue(None); import personabot.personas_cli; "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_the_shipped_folder_is_part_of_the_package() -> None:
    assert {file.suffix for file in SHIPPED.iterdir() if file.is_file()} == {".yaml"}
