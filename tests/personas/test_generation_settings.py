"""Sampling settings that hold several words, wherever they are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from personas.errors import SettingsError
from personas.persona import GenerationSettings, Persona
from personas.settings import load_generation, load_settings
from personas.yaml_file import Source, parse, validated

WANTED = GenerationSettings(
    bad_words=("damn", "Damn"), stop_strings=("\\nUser:", "a, b"), logit_bias={"please": 2.0, "well": -3.0}
)


def test_flags_and_the_environment_take_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = {
        "bad_words": "damn, Damn",
        "stop_strings": '["\\\\nUser:", "a, b"]',
        "logit_bias": "please=2, well=-3",
    }
    assert load_generation(**lines) == WANTED
    for name, line in lines.items():
        monkeypatch.setenv(f"PERSONABOT_GENERATION__{name.upper()}", line)
    assert load_settings().generation == WANTED


def test_a_settings_file_and_a_persona_take_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "personabot.toml").write_text(
        """[generation]
bad_words = ["damn", "Damn"]
stop_strings = ['\\nUser:', "a, b"]
logit_bias = { please = 2, well = -3 }
""",
        encoding="utf-8",
    )
    assert load_settings().generation == WANTED
    text = """name: Ada
generation:
  bad_words: [damn, Damn]
  stop_strings: ['\\nUser:', 'a, b']
  logit_bias: {please: 2, well: -3}
"""
    persona = validated(parse(text, Source("ada.yaml")), Persona)
    assert persona is not None
    assert persona.generation == WANTED


def test_an_empty_list_unsets_what_a_lower_layer_says() -> None:
    assert GenerationSettings(bad_words=()).over(WANTED).bad_words == ()
    assert GenerationSettings().over(WANTED) == WANTED


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"logit_bias": "please"}, "--logit-bias: expected WORD=BIAS, such as hello=2, like=-1"),
        ({"bad_words": "[1"}, "--bad-words: expected a list or an object in JSON, or words between commas"),
        ({"num_beams": 99}, "--num-beams: input should be less than or equal to 8"),
    ],
)
def test_a_flag_that_cannot_be_read_is_refused(flags: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load_generation(**flags)
