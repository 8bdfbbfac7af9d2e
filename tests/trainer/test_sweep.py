"""The sweep answers every prompt at every point of its grid, and shows the replies side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from personas.catalogue import load_catalogue
from personas.errors import SettingsError
from personas.persona import GenerationSettings
from personas.presets import PRESETS, preset
from tests.helpers.cli import personabot
from trainer.sweep import Prompt, SweepError, grid, page, read_prompts, sweep, table
from worker.loading import load_model

ADA = load_catalogue(None).get("Fennick")


def test_a_grid_is_every_combination_of_its_axes() -> None:
    points = grid(["temperature=0.5,1", "top-p=0.9"])
    assert points == {
        "temperature=0.5 top_p=0.9": GenerationSettings(temperature=0.5, top_p=0.9),
        "temperature=1 top_p=0.9": GenerationSettings(temperature=1.0, top_p=0.9),
    }
    assert grid([]) == {}


@pytest.mark.parametrize(
    ("axis", "problem"),
    [
        ("temperature", "expected NAME=VALUE,VALUE with one of temperature, top_p"),
        ("heat=1", "expected NAME=VALUE,VALUE"),
        ("top_p=2", "--grid top_p=2: input should be less than or equal to 1"),
    ],
)
def test_an_axis_that_is_none_is_refused(axis: str, problem: str) -> None:
    with pytest.raises(SweepError, match=problem):
        grid([axis])


def test_a_prompt_file_without_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n")
    with pytest.raises(SweepError, match="no prompts in it"):
        read_prompts(path, ADA)


def test_every_prompt_is_answered_at_every_point_and_the_seed_repeats_it(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model), device="cpu", dtype="float32")
    prompts = [Prompt(ADA, "hello there"), Prompt(ADA, "do you have any pets? <b>")]
    points = {"hot": GenerationSettings(temperature=2.0), "calm": preset("calm")}
    columns = sweep(loaded, prompts, points, seed=3)
    assert columns == sweep(loaded, prompts, points, seed=3)
    assert [len(column.said) for column in columns] == [2, 2]
    header, hot, _ = table(columns)
    assert header[:3] == ["model", "settings", "distinct-1"]
    assert hot[1] == "hot"
    shown = page(prompts, columns, seed=3)
    assert shown.count('<td class="prompt">') == 2
    assert "pets? &lt;b&gt;" in shown


def test_presets_are_valid_settings_and_an_unknown_one_is_named() -> None:
    assert set(PRESETS) >= {"calm", "lively", "precise", "dreamy"}
    with pytest.raises(SettingsError, match=r"no preset 'lifely'\. Did you mean lively"):
        preset("lifely")


def test_the_command_writes_the_page_and_prints_the_table(home: Path, tiny_model: Path) -> None:
    (home / "prompts.txt").write_text("hello there\nwhere are you from?\n")
    flags = ("--grid", "temperature=0.5,1.0", "--preset", "precise", "--prompt-file", "prompts.txt")
    done = personabot("sweep", tiny_model, *flags, home=home)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert "temperature=0.5" in (home / "sweep.html").read_text()
