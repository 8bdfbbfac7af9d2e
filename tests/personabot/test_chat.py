"""`personabot chat` as a process: through a pipe, from a prompt file, into an output file."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from personabot.chat_cmd import BackgroundModel
from personabot.cli import app
from personas.catalogue import load_catalogue
from personas.conversation import Role, Turn
from personas.persona import GenerationSettings, Persona
from personas.registry import VOICES_FILE, Registry
from personas.settings import Settings
from personas.voices import give
from tests.helpers.cli import personabot
from tests.helpers.tiny_model import tiny_checkpoint

PERSONA = load_catalogue(None).names()[0]


@pytest.fixture(autouse=True)
def own_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what a command changes in this process go with the test: environment, logging."""
    monkeypatch.setenv("PERSONABOT_DATA_DIR", str(home))
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**config)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_it_chats_through_a_pipe(home: Path, tiny_model: Path) -> None:
    done = personabot(
        "chat",
        "--persona",
        PERSONA,
        "--model-path",
        tiny_model,
        home=home,
        stdin="hello\n/settings\nwhat now?\n/quit\n",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith(f"{PERSONA}: ") for line in lines) == 3
    assert "\x1b" not in done.stdout


def write_prompts(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("hello\n\nwhat is your name?\ndo you like it here?\n", encoding="utf-8")
    return path


def answered(home: Path, model: Path, out: Path, *flags: str) -> list[dict[str, object]]:
    """Answer the prompts in this process, with the command line's own parser."""
    paths = ["--model-path", str(model), "--prompt-file", str(write_prompts(home)), "--output-file", str(out)]
    done = CliRunner().invoke(app, ["--data-dir", str(home), "chat", *paths, *flags])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_writes_the_same_file(home: Path, tiny_model: Path) -> None:
    flags = ("--persona", PERSONA, "--seed", "7", "--temperature", "1.2", "--top-k", "50")
    paths = ("--model-path", tiny_model, "--prompt-file", write_prompts(home))
    for name in ("a.jsonl", "b.jsonl"):
        done = personabot("chat", *paths, "--output-file", home / name, *flags, home=home)
        assert done.returncode == 0, done.stderr
    assert (home / "a.jsonl").read_bytes() == (home / "b.jsonl").read_bytes()
    first = [json.loads(line) for line in (home / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["prompt"] for entry in first] == ["hello", "what is your name?", "do you like it here?"]
    assert all(set(entry) == {"persona", "prompt", "reply", "model", "seed"} and entry["reply"] for entry in first)


def test_a_preset_is_its_settings_and_a_flag_wins_over_it(home: Path, tiny_model: Path) -> None:
    precise = answered(home, tiny_model, home / "precise.jsonl", "--preset", "precise")
    greedy = answered(home, tiny_model, home / "greedy.jsonl", "--no-do-sample")
    assert [line["reply"] for line in precise] == [line["reply"] for line in greedy]
    over = answered(home, tiny_model, home / "over.jsonl", "--preset", "precise", "--do-sample", "--temperature", "3")
    assert [line["reply"] for line in over] != [line["reply"] for line in greedy]


def test_another_seed_says_something_else(home: Path, tiny_model: Path) -> None:
    replies = [
        [entry["reply"] for entry in answered(home, tiny_model, home / "out.jsonl", "--seed", seed)] for seed in "12"
    ]
    assert replies[0] != replies[1]


def test_continue_makes_one_conversation_of_the_prompts(home: Path, tiny_model: Path) -> None:
    flags = ("--no-do-sample", "--seed", "7")
    fresh = answered(home, tiny_model, home / "a.jsonl", *flags)
    running = answered(home, tiny_model, home / "b.jsonl", *flags, "--continue")
    assert fresh[0]["reply"] == running[0]["reply"]
    assert [entry["reply"] for entry in fresh[1:]] != [entry["reply"] for entry in running[1:]]


def test_a_transcript_without_jsonl_is_for_people(home: Path, tiny_model: Path) -> None:
    out = home / "out.txt"
    done = personabot(
        "chat", "--persona", PERSONA, "--model-path", tiny_model, "--prompt-file", "-", "--output-file", out,
        home=home, stdin="hello\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    assert text.startswith(f"# {PERSONA}\n")
    assert f"You: hello\n{PERSONA}: " in text


def heard(home: Path, *flags: str) -> str:
    """Return which model answered one prompt."""
    prompts, out = home / "one.txt", home / "heard.jsonl"
    prompts.write_text("hello\n", encoding="utf-8")
    paths = ["--prompt-file", str(prompts), "--output-file", str(out)]
    done = CliRunner().invoke(app, ["--data-dir", str(home), "chat", *paths, "--seed", "1", *flags])
    assert done.exit_code == 0, done.output
    return str(json.loads(out.read_text(encoding="utf-8").splitlines()[-1])["model"])


def test_a_persona_speaks_with_its_voice_unless_a_model_is_named(home: Path, tmp_path: Path) -> None:
    registry = Registry(home / "checkpoints")
    models = [tiny_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("general", "rusty"))]
    for model in models:
        registry.promote(registry.add(model, model.name).reference)
    registry.choose("general")
    give(registry, "Rusty", "rusty")
    general, rusty = (f"{each}@{registry.version(each).digest}" for each in ("general", "rusty"))
    assert heard(home, "--persona", "rusty") == rusty
    assert heard(home, "--persona", "fennick") == general
    assert heard(home, "--persona", "rusty", "--model-path", "general") == general
    damaged = registry.version("rusty").folder / "config.json"
    damaged.write_text("{}")
    assert heard(home, "--persona", "rusty") == general, "what can't be loaded leaves the default speaking"


def test_in_a_running_chat_each_persona_brings_its_voice_along(home: Path, tmp_path: Path) -> None:
    registry = Registry(home / "checkpoints")
    for seed, name in enumerate(("general", "rusty")):
        registry.promote(registry.add(tiny_checkpoint(tmp_path / name, seed=seed), name).reference)
    settings = Settings(data_dir=home, model="general", device="cpu", dtype="float32", num_threads=1)
    rusty, eve = Persona(name="Rusty"), Persona(name="Eve")
    said: list[str] = []
    with BackgroundModel(settings, rusty, warn=said.append) as model:

        def model_of(persona: Persona) -> str:
            reply = model.speak(persona, [Turn(Role.USER, "hello")], GenerationSettings(seed=1))
            return reply.model.partition("@")[0]

        assert model_of(rusty) == "general"
        give(registry, "Rusty", "rusty")
        assert [model_of(persona) for persona in (rusty, eve, rusty)] == ["rusty", "general", "rusty"]
    assert said == []


def test_a_damaged_list_of_voices_is_told_once_and_the_default_speaks(home: Path, tmp_path: Path) -> None:
    registry = Registry(home / "checkpoints")
    registry.promote(registry.add(tiny_checkpoint(tmp_path / "general"), "general").reference)
    (registry.folder / VOICES_FILE).write_text("{")
    settings = Settings(data_dir=home, model="general", device="cpu", dtype="float32", num_threads=1)
    said: list[str] = []
    with BackgroundModel(settings, Persona(name="Rusty"), warn=said.append) as model:
        for name in ("Rusty", "Eve"):
            reply = model.speak(Persona(name=name), [Turn(Role.USER, "hello")], GenerationSettings(seed=1))
            assert reply.model.startswith("general@")
    [warning] = said
    assert VOICES_FILE in warning


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-path", "no/such/folder"], "no/such/folder"),
        (["--persona", "Nobody At All"], "Nobody At All"),
        (["--prompt-file", "missing.txt"], "missing.txt"),
        (["--top-p", "3"], "--top-p"),
        (["--continue"], "--continue needs --prompt-file"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(home: Path, flags: list[str], message: str) -> None:
    done = personabot("chat", *flags, home=home, stdin="hello\n")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
