"""What a persona is: a character's name, facts, greeting, example dialogue and settings.

Owns the model and its rules, not the files it is read from (`catalogue`) nor how it becomes tokens (`layout`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class GenerationSettings(BaseModel):
    """How replies are sampled. Every field is optional: None means "not said here, ask the next layer"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(None, gt=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=5)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    do_sample: bool | None = None
    max_length: int | None = Field(None, ge=1, description="prompt and reply together, in tokens")
    max_new_tokens: int | None = Field(None, ge=1)
    min_new_tokens: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**63)

    def over(self, lower: GenerationSettings) -> GenerationSettings:
        """Return these settings with the gaps filled from `lower`."""
        return GenerationSettings(**{**lower.model_dump(exclude_none=True), **self.model_dump(exclude_none=True)})


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
