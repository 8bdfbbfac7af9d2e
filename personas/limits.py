"""What retraining data and retrained models have to keep to. Owns the limits and their defaults, not the measuring."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataLimits(_Limits):
    """For the dry run: shares of 0 to 1; the two last ones are measured with the present model."""

    max_rejected: float = Field(
        0.05, ge=0, le=1, description="share of lines that cannot be read; they are left out and shown"
    )
    max_duplicates: float = Field(
        0.5, ge=0, le=1, description="share of dialogues that were there before, word for word"
    )
    max_repeated_line: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the bot's turns that say the line it says most often, the first one apart",
    )
    max_empty: float = Field(0.2, ge=0, le=1, description="share of the bot's turns without a letter or digit")
    max_unanswered: float = Field(0.8, ge=0, le=1, description="share of dialogues in which the bot says nothing")
    max_foreign_letters: float = Field(0.1, ge=0, le=1, description="share of letters that the general set never uses")
    max_surprise: float = Field(
        2.0, ge=1, description="the present model's bits per byte, as a multiple of those on the general set"
    )
    min_order: float = Field(
        1.05, ge=1, description="bits per byte with the words of each turn shuffled, as a multiple of those unshuffled"
    )


class GateLimits(_Limits):
    """For the gate: how much worse than the present model a new one may be, and what it has to keep in any case."""

    max_loss_new: float = Field(0.02, description="bits per byte more than the present model on the new held-out data")
    max_forgetting: float = Field(0.15, description="bits per byte more than the present model on the general set")
    max_probe_loss: float = Field(0.15, ge=0, le=1, description="share of probe questions fewer answered in character")
    max_repetition: float = Field(0.05, ge=0, le=1, description="share of 4-grams that a reply has said before")
    max_same_reply: float = Field(0.3, ge=0, le=1, description="share of different questions that get the same reply")
    max_empty: float = Field(0.05, ge=0, le=1, description="share of replies without a word")
    max_smoke_failures: int = Field(1, ge=0, description="empty or repeated replies in a conversation of six turns")
