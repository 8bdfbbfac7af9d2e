"""`personabot checkpoints` as its user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from personabot.checkpoints_cli import app
from personas.lineage import Figure, Lineage, Verdict
from personas.registry import Registry
from tests.helpers.bare_checkpoint import bare_checkpoint
from tests.helpers.cli import personabot

REFUSED = Verdict(figures=(Figure(name="bpb_new", value=2.0, limit=1.5, unit="bits per byte"),))


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("PERSONABOT_DATA_DIR", str(home))
    monkeypatch.setenv("COLUMNS", "200")
    return Registry(home / "checkpoints")


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_add_promote_rollback_and_what_list_says(registry: Registry, tmp_path: Path) -> None:
    for number, content in ((1, "one"), (2, "two")):
        assert "to serve it" in run("add", bare_checkpoint(tmp_path / content, content), "--name", "ada")
        run("promote", f"ada@{number}")
    assert run("rollback", "ada").startswith("ada@0001-")
    listed = json.loads(run("list", "--json"))
    assert [(each["name"], each["version"][:4], each["is_current"]) for each in listed if each["name"] == "ada"] == [
        ("ada", "0001", True),
        ("ada", "0002", False),
    ]
    assert {each["name"] for each in listed if each["is_shipped"]} >= {"starter", "smollm2-persona"}
    assert "current" in run("list", "ada")
    assert "is served by default" in run("use", "ada")
    assert registry.chosen() == "ada"


def test_a_persona_is_given_a_voice_that_list_shows_and_unvoice_takes_away(
    registry: Registry, tmp_path: Path, home: Path
) -> None:
    version = registry.promote(registry.add(bare_checkpoint(tmp_path / "one"), "baker").reference)
    assert run("use", "baker", "--persona", "rusty") == f"{version.reference} speaks as Rusty\n"
    assert registry.chosen() is None
    assert "current, speaks as Rusty" in run("list", "baker")
    assert json.loads(run("show", "baker", "--json"))["voice_of"] == ["Rusty"]
    shown = personabot("personas", "show", "rusty", home=home)
    assert "Checkpoint: baker" in shown.stdout
    assert run("unvoice", "rusty") == "Rusty no longer speaks with baker\n"
    assert "speaks as" not in run("list", "baker")
    run("use", "baker", "--persona", "rusty")
    assert "Rusty will speak with the default again" in run("rollback", "baker")


def test_list_says_who_speaks_with_a_version_by_file_or_voice(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("one", "two"):
        registry.promote(registry.add(bare_checkpoint(tmp_path / content, content), "baker").reference)
    personas = tmp_path / "personas"
    personas.mkdir()
    for name, checkpoint in (("Ann", "baker@1"), ("Bob", "baker"), ("Eve", "no/such/folder")):
        (personas / f"{name}.yaml").write_text(f"name: {name}\nfacts: [My name is {name}.]\ncheckpoint: {checkpoint}\n")
    monkeypatch.setenv("PERSONABOT_PERSONAS_DIR", str(personas))
    for name in ("Ann", "Rusty"):
        run("use", "baker", "--persona", name)
    listed = json.loads(run("list", "baker", "--json"))
    assert [each["voice_of"] for each in listed] == [["Ann"], ["Bob", "Rusty"]]
    assert "current, speaks as Bob, Rusty" in run("list", "baker")


def test_show_names_the_figures_that_decided(registry: Registry, tmp_path: Path) -> None:
    registry.add(bare_checkpoint(tmp_path / "one"), "ada", Lineage(by="ann", verdict=REFUSED, data={"a.jsonl": "00"}))
    shown = run("show", "ada@1")
    assert "NOT KEPT: bpb_new 2 bits per byte, expected at most 1.5" in shown
    assert "a.jsonl" in shown
    assert json.loads(run("show", "ada@1", "--json"))["gate"] == "refused"
    assert "is current" in run("promote", "ada@1", "--force")
    assert "forced by" in run("show", "ada")


def test_verify_names_what_is_damaged(registry: Registry, tmp_path: Path) -> None:
    version = registry.add(bare_checkpoint(tmp_path / "one"), "ada")
    assert run("verify", "ada@1") == f"whole: {version.reference}\n"
    (version.folder / "config.json").write_text("{ }")
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "config.json differs" in result.output
    assert "whole: starter@shipped" in result.output


def test_prune_says_what_it_deleted(registry: Registry, tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        registry.add(bare_checkpoint(tmp_path / content, content), "ada")
    gone = [version.reference for version in registry.versions("ada")[:2]]
    assert run("prune", "--keep", "1").splitlines() == [f"deleted {reference}" for reference in gone]
    assert [version.sequence for version in registry.versions("ada")] == [3]


def test_prune_keeps_a_version_that_a_personas_file_or_the_settings_pin(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in ("one", "two", "three"):
        registry.add(bare_checkpoint(tmp_path / content, content), "ada")
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "ann.yaml").write_text("name: Ann\nfacts: [My name is Ann.]\ncheckpoint: ada@1\n")
    monkeypatch.setenv("PERSONABOT_PERSONAS_DIR", str(tmp_path / "personas"))
    monkeypatch.setenv("PERSONABOT_MODEL", "ada@2")
    [gone] = [version.reference for version in registry.versions("ada") if version.sequence == 3]
    assert run("prune", "--keep", "0") == f"deleted {gone}\n"


def test_push_and_pull_between_two_data_folders(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(registry.add(bare_checkpoint(tmp_path / "one"), "ada").reference)
    url = (tmp_path / "store").as_uri()
    assert run("push", "ada", url).startswith("pushed ada@0001-")
    monkeypatch.setenv("PERSONABOT_DATA_DIR", str(tmp_path / "elsewhere"))
    assert "which is current" in run("pull", "ada", url, "--promote")


def test_a_mistake_ends_in_one_message_and_no_traceback(home: Path) -> None:
    done = personabot("checkpoints", "promote", "nobody", home=home)
    assert done.returncode == 2
    assert "There is no checkpoint called 'nobody'" in done.stderr
    assert "Traceback" not in done.stderr


def test_chat_takes_a_registered_name(home: Path, tiny_model: Path) -> None:
    registry = Registry(home / "checkpoints")
    version = registry.promote(registry.add(tiny_model, "ada").reference)
    (home / "prompts.txt").write_text("Hello!\n")
    arguments = ("chat", "--model-path", "ada", "--prompt-file", "prompts.txt", "--output-file", "out.jsonl")
    done = personabot(*arguments, "--seed", "1", home=home)
    assert done.returncode == 0, done.stderr
    assert f"ada@{version.digest}" in (home / "out.jsonl").read_text()
