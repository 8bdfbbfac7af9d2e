"""Named ways of speaking: generation settings that were chosen by reading what they do (docs/sweep/README.md)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from personas.errors import SettingsError
from personas.persona import GenerationSettings


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings under a name, and what they are good for."""

    settings: GenerationSettings
    description: str


PRESETS: Final = {
    "calm": Preset(GenerationSettings(temperature=0.5, top_p=0.9), "keeps to the expected, says little that is odd"),
    "lively": Preset(GenerationSettings(temperature=0.9, top_p=0.95), "varied, now and then surprising"),
    # Not with no_repeat_ngram_size, which forbids quoting the persona's own facts as well.
    "precise": Preset(GenerationSettings(do_sample=False), "always the likeliest words: plain, to the point"),
    # At this temperature top_p alone lets words in that break the sentence.
    "dreamy": Preset(GenerationSettings(temperature=1.2, min_p=0.05), "wanders off; not for those who want an answer"),
}


def preset(name: str) -> GenerationSettings:
    """Return the settings of a preset; raises `SettingsError` naming those there are."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(PRESETS)}."
        raise SettingsError(f"There is no preset {name!r}. {hint}")
    return PRESETS[name].settings
