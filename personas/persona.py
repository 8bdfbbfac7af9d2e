"""What a persona is: a character's name, facts, greeting, example dialogue and settings.

Owns the model and its rules, not the files it is read from (`catalogue`) nor how it becomes tokens (`layout`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

MAX_WORDS = 100
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Words = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=100)], ...], Field(max_length=MAX_WORDS)
]


class GenerationSettings(BaseModel):
    """How replies are sampled. Every field is optional: None means "not said here, ask the next layer"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(None, gt=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(
        None, ge=0, le=1, description="leaves out tokens less likely than this share of the best"
    )
    typical_p: float | None = Field(None, gt=0, le=1, description="samples from the most typical tokens of this share")
    repetition_penalty: float | None = Field(None, gt=0, le=5)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    do_sample: bool | None = None
    num_beams: int | None = Field(None, ge=1, le=8, description="above 1: beam search, the likeliest reply found")
    candidates: int | None = Field(None, ge=1, le=8, description="how many replies are sampled; the best one is said")
    bad_words: Words | None = Field(None, description="never said, as written here and after a space")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_WORDS, description="words that are made likelier (above 0) or rarer (below 0)"
    )
    stop_strings: Words | None = Field(None, description="texts that end the reply; they are left out of it")
    max_length: int | None = Field(None, ge=1, description="prompt and reply together, in tokens")
    max_new_tokens: int | None = Field(None, ge=1)
    min_new_tokens: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**63)

    @field_validator("bad_words", "stop_strings", "logit_bias", mode="before")
    @classmethod
    def _from_one_line(cls, value: Any, info: ValidationInfo) -> Any:
        """Flags, the environment and /settings give one line: `a, b` or `a=2, b=-1`, or the same as JSON."""
        if isinstance(value, str):
            value = _from_json(value) if value.lstrip().startswith(("[", "{")) else _from_words(value, info.field_name)
        return tuple(value) if isinstance(value, list) else value  # strict validation takes no list for a tuple

    def over(self, lower: GenerationSettings) -> GenerationSettings:
        """Return these settings with the gaps filled from `lower`."""
        return GenerationSettings(**{**lower.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


def _from_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError("expected a list or an object in JSON, or words between commas") from None


def _from_words(line: str, field: str | None) -> list[str] | dict[str, float]:
    words = [word.strip() for word in line.split(",") if word.strip()]
    if field != "logit_bias":
        return words
    try:
        return {word.strip(): float(bias) for word, bias in (pair.rsplit("=", 1) for pair in words)}
    except ValueError:
        raise ValueError("expected WORD=BIAS, such as hello=2, like=-1") from None


class ExampleTurn(BaseModel):
    """One exchange that shows how the persona talks; it precedes the history in the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: Line
    bot: Line


class Persona(BaseModel):
    """A character. `facts` are short first-person sentences, the name among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    description: Line | None = None
    facts: tuple[Line, ...] = ()
    greeting: Line | None = None
    examples: tuple[ExampleTurn, ...] = ()
    avatar: Line | None = None
    generation: GenerationSettings = GenerationSettings()
    checkpoint: Line | None = None

    @field_validator("facts")
    @classmethod
    def _name_is_among_the_facts(cls, facts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        name = info.data.get("name", "")
        if facts and name and not any(name.split()[0].casefold() in fact.casefold() for fact in facts):
            raise ValueError(f"expected one of the facts to say the name, such as 'My name is {name}.'")
        return facts
