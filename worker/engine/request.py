"""What the engine is asked for, what it answers, and the state of a request in between. Plain data, no tensors."""

from __future__ import annotations

import secrets
import time
import zlib
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self

from personas.persona import GenerationSettings
from worker.engine.errors import RequestRefused

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen; the meaning of each is that of `transformers`' `generate`.

    Of `max_new_tokens` and `max_length` (prompt and reply together) the tighter one holds. `bad_words` and `biases` are
    in ids: a phrase of several tokens forbids, or makes likelier, its last one where the others precede it.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[Ids, ...] = ()
    biases: tuple[tuple[Ids, float], ...] = ()
    do_sample: bool = True
    max_new_tokens: int = 80
    max_length: int | None = None
    min_new_tokens: int = 0
    num_beams: int = 1
    seed: int = 0

    @classmethod
    def from_settings(
        cls,
        settings: GenerationSettings,
        *,
        bad_words: tuple[Ids, ...] = (),
        biases: tuple[tuple[Ids, float], ...] = (),
    ) -> Self:
        """Fill the gaps of `settings` with the built-in defaults; without a seed, draw one.

        What `settings` say in words is given in ids beside them.
        """
        names = {entry.name for entry in fields(cls)} - {"bad_words", "biases"}
        given = settings.model_dump(exclude_none=True, include=names)
        return cls(**{"seed": secrets.randbits(32), **given}, bad_words=bad_words, biases=biases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt to be continued. After `timeout_s` it ends with what there is, or with `DeadlinePassed`.

    `group` is (server, conversation): slots go round between servers, and between the conversations of one. `on_token`
    is called in the engine's thread with each token of the reply; it returns True to end the reply there. Beam search,
    which knows its tokens only at the end, calls `is_complete` instead, with all ids of a beam. `wants_log_prob` asks
    how likely the reply is. `wants_fit` asks for no reply at all, but how well the end of the prompt continues it, by
    the model's next-utterance head.
    """

    prompt_ids: Ids
    params: SamplingParams = SamplingParams()
    timeout_s: float | None = None
    group: tuple[str, str] = ("", "")
    on_token: Callable[[int], bool] | None = None
    is_complete: Callable[[Ids], bool] | None = None
    wants_log_prob: bool = False
    wants_fit: bool = False

    def check(self, window: int, vocabulary_size: int, max_num_seqs: int) -> None:
        """Raise `RequestRefused` where it can never run."""
        num_prompt, num_beams = len(self.prompt_ids), self.params.num_beams
        if not num_prompt:
            raise RequestRefused("the prompt is empty")
        if num_prompt >= window:
            raise RequestRefused(f"the prompt has {num_prompt} tokens, the model reads at most {window - 1}")
        if min(self.prompt_ids) < 0 or max(self.prompt_ids) >= vocabulary_size:
            raise RequestRefused(f"the prompt has ids beyond the model's {vocabulary_size} tokens")
        if num_beams > max_num_seqs:
            raise RequestRefused(f"num_beams is {num_beams}, but only {max_num_seqs} (max_num_seqs) run at once")


class FinishReason(StrEnum):
    """Why a reply ended: its own end token, who listened, its length limit, or its time."""

    STOP = "stop"
    HEARD = "heard"
    LENGTH = "length"
    TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The ids of a reply without the end token, and how long it took from `submit` on.

    `mean_log_prob`: the model's own log-probability of the tokens, the end token included, per token in nats: at
    temperature 1, before anything is biased or filtered out; in a beam search, what that ranked by. None where it was
    not asked for. `fit`: the logit of the next-utterance head, where that was asked for.
    """

    ids: Ids
    finish_reason: FinishReason
    num_prompt_tokens: int
    queue_s: float
    first_token_s: float
    total_s: float
    seed: int
    mean_log_prob: float | None = None
    fit: float | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine: its ids so far, how many of them the cache holds, its slots.

    A follower has a `leader` with the same prompt, and waits until that has computed it. In a beam search, `root` is
    the sequence that stands for the request; it holds the slots of beams that are not there yet in reserve.
    """

    request: Request
    leader: Sequence | None = None
    root: Sequence | None = None
    future: Future[Completion] = field(default_factory=Future)
    ids: list[int] = field(init=False)
    noise_key: int = field(init=False)
    num_cached_tokens: int = 0
    slot: int | None = None
    reserved_slots: list[int] = field(default_factory=list)
    num_crashes: int = 0
    log_prob: float = 0.0
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.ids = list(self.request.prompt_ids)
        # The prompt takes part, so that a channel with a fixed seed doesn't begin every reply with the same word.
        self.noise_key = self.params.seed ^ zlib.crc32(array("q", self.ids).tobytes()) << 31

    @property
    def params(self) -> SamplingParams:
        """The request's sampling parameters."""
        return self.request.params

    @property
    def num_new_tokens(self) -> int:
        """The number of tokens generated so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def deadline(self) -> float | None:
        """The moment, on the monotonic clock, at which the request's time is over."""
        return None if self.request.timeout_s is None else self.submitted_at + self.request.timeout_s

    @property
    def is_ready(self) -> bool:
        """Whether it need not wait for its leader any more."""
        return self.leader is None or self.leader.num_new_tokens > 0 or self.leader.future.done()

    def max_tokens(self, window: int) -> int:
        """The length at which the reply ends; it has room for at least one new token."""
        num_prompt = len(self.request.prompt_ids)
        limit = min(window, num_prompt + self.params.max_new_tokens, self.params.max_length or window)
        return max(limit, num_prompt + 1)

    def completion(
        self,
        reason: FinishReason,
        *,
        reply: Ids | None = None,
        mean_log_prob: float | None = None,
        fit: float | None = None,
    ) -> Completion:
        """Describe the reply, its own or what a beam search found; the end token that stopped it is left out."""
        now = time.monotonic()
        if reply is None:
            reply = tuple(self.ids[len(self.request.prompt_ids) :])
            mean_log_prob = self.log_prob / max(len(reply), 1)
        return Completion(
            ids=reply[:-1] if reason is FinishReason.STOP else reply,
            finish_reason=reason,
            num_prompt_tokens=len(self.request.prompt_ids),
            queue_s=(self.started_at or now) - self.submitted_at,
            first_token_s=(self.first_token_at or now) - self.submitted_at,
            total_s=now - self.submitted_at,
            seed=self.params.seed,
            mean_log_prob=mean_log_prob if self.request.wants_log_prob else None,
            fit=fit,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that one step computes: `num_tokens` from the first one the cache lacks."""

    sequence: Sequence
    num_tokens: int

    @property
    def start(self) -> int:
        """The position of the chunk's first token."""
        return self.sequence.num_cached_tokens

    @property
    def end(self) -> int:
        """The position after the chunk's last token."""
        return self.start + self.num_tokens

    @property
    def ids(self) -> list[int]:
        """The chunk's tokens."""
        return self.sequence.ids[self.start : self.end]

    @property
    def is_last(self) -> bool:
        """Whether the next token can be sampled after this chunk."""
        return self.end == len(self.sequence.ids)
