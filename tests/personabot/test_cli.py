"""The command line itself: help, errors, settings."""

from pathlib import Path

import pytest

from tests.helpers.cli import personabot


def test_help_names_every_command(home: Path) -> None:
    done = personabot("--help", home=home)
    for command in ("up", "chat", "bot", "worker", "train", "evaluate", "personas", "doctor", "bench"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "command",
    [["up"], ["chat"], ["bot", "discord"], ["bot", "telegram"], ["worker"], ["train"], ["evaluate"], ["personas"]],
)
def test_every_command_explains_itself(home: Path, command: list[str]) -> None:
    done = personabot(*command, "--help", home=home)
    assert done.returncode == 0, done.stderr
    assert "personabot " + " ".join(command) in done.stdout


@pytest.mark.parametrize("platform", ["discord", "telegram"])
def test_an_adapter_without_a_token_says_where_to_get_one(home: Path, platform: str) -> None:
    done = personabot("bot", platform, home=home)
    assert done.returncode == 2
    assert f"{platform.upper()}_TOKEN is not set" in done.stderr


def test_a_misspelt_variable_is_refused_by_name(home: Path) -> None:
    done = personabot("worker", home=home, PERSONABOT_MODLE="x")
    assert done.returncode == 2
    assert "PERSONABOT_MODLE is not a setting (did you mean PERSONABOT_MODEL?)" in done.stderr


def test_personas_are_listed_as_json(home: Path) -> None:
    import json

    done = personabot("personas", "list", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert len([entry["name"] for entry in json.loads(done.stdout)]) >= 12


def test_an_unexpected_error_is_one_line_and_a_file(home: Path) -> None:
    (home / "redis").write_text("a file where the server's folder belongs")
    done = personabot("bot", "discord", home=home, DISCORD_TOKEN="x")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Something went wrong inside personabot" in done.stderr
    (crash,) = (home / "logs").glob("crash-*.txt")
    assert "Traceback" in crash.read_text()


def test_the_version_is_shown(home: Path) -> None:
    assert personabot("--version", home=home).stdout.startswith("personabot 0.")
