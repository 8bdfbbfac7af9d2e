"""`personabot personas list|show|check`."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from personabot.personas_cli import app
from personas.catalogue import SHIPPED, PersonaFileError, UnknownPersona, load_catalogue


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PERSONABOT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_list_as_json_holds_every_persona_by_name() -> None:
    status, output = run("list", "--json")
    assert status == 0
    assert [entry["name"] for entry in json.loads(output)] == load_catalogue(None).names()
    assert {entry["origin"] for entry in json.loads(output)} == {"shipped"}


def test_list_for_people_names_everybody() -> None:
    status, output = run("list")
    assert status == 0
    assert all(name in output for name in load_catalogue(None).names())


def test_list_shows_the_operators_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "zed.yaml").write_text("name: Zed\n")
    monkeypatch.setenv("PERSONABOT_PERSONAS_DIR", str(tmp_path / "own"))
    entries = {entry["name"]: entry["origin"] for entry in json.loads(run("list", "--json")[1])}
    assert entries["Zed"] == "own"


def test_list_refuses_a_bad_file_of_the_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.yaml").write_text("nam: Zed\n")
    monkeypatch.setenv("PERSONABOT_PERSONAS_DIR", str(tmp_path))
    with pytest.raises(PersonaFileError, match=r"bad\.yaml:1: nam: unknown field; did you mean name\?"):
        run("list")


def test_show_tells_facts_greeting_examples_and_sampling() -> None:
    status, output = run("show", "rusty")
    persona = load_catalogue(None).get("Rusty")
    assert status == 0
    assert persona.greeting
    for text in (*persona.facts, persona.greeting, persona.examples[0].bot, "temperature 0.6"):
        assert text in output


def test_show_as_json_is_the_persona() -> None:
    shown = json.loads(run("show", "Mara Voss", "--json")[1])
    assert shown["facts"] == list(load_catalogue(None).get("Mara Voss").facts)


def test_show_of_nobody_suggests_somebody() -> None:
    with pytest.raises(UnknownPersona, match="Did you mean Rusty"):
        run("show", "rustie")


def test_show_takes_markup_in_a_persona_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zed.yaml").write_text("name: Zed [bold]\nfacts: ['I am Zed [/nope].']\n")
    monkeypatch.setenv("PERSONABOT_PERSONAS_DIR", str(tmp_path))
    assert "I am Zed [/nope]." in run("show", "zed")[1]


def test_check_without_paths_checks_the_catalogue() -> None:
    assert run("check") == (0, f"{len(load_catalogue(None))} personas, no problems\n")


def test_check_prints_every_problem_and_fails(tmp_path: Path) -> None:
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text("name: Zed\nfacts: [I am nobody.]\nfoo: 1\n")
    worse.write_text("name: [\n")
    status, output = run("check", tmp_path)
    assert status == 1
    assert f"{bad}:2: facts: expected one of the facts to say the name" in output
    assert f"{bad}:3: foo: unknown field" in output
    assert f"{worse}:" in output
    assert "3 problems in 2 files. See docs/personas.md" in output


def test_check_of_a_path_that_is_not_there_fails(tmp_path: Path) -> None:
    status, output = run("check", tmp_path / "nowhere.yaml")
    assert status == 1
    assert "there is nothing" in output


def test_check_finds_one_name_in_two_files_given_one_by_one(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("name: Zed\n")
    status, output = run("check", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert status == 1
    assert "expected another name" in output


def test_check_says_which_shipped_persona_a_file_replaces(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: rusty\n")
    status, output = run("check", tmp_path / "mine.yaml")
    assert status == 0
    assert "takes the place of the shipped rusty" in output
    assert output.endswith("1 persona, no problems\n")


def test_check_of_the_shipped_folder_by_its_path_replaces_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SHIPPED.parent)
    assert "takes the place" not in run("check", SHIPPED.name)[1]
