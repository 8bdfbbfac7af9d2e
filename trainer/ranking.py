"""Next-utterance ranking: which replies compete with the true one, and what a model thinks of each.

Owns the candidate sets and the forward pass that scores one; what a rank is worth is `metrics`' business.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from personas.conversation import Role, Turn
from personas.layout import Layout
from trainer.formats import DataError, Dialogue
from trainer.metrics import hit_and_reciprocal_rank, normalised

NUM_CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class Question:
    """A context and the replies that compete for it; the true one is the last, as in ConvAI2's files."""

    facts: tuple[str, ...]
    turns: tuple[Turn, ...]
    candidates: tuple[str, ...]


def questions(
    dialogues: Sequence[Dialogue], *, limit: int | None = None, seed: int = 1, number: int = NUM_CANDIDATES
) -> list[Question]:
    """Return a question for every bot turn of the first `limit` dialogues that is no mere context.

    Where the data offers wrong replies of its own they are taken as they are. Elsewhere they are bot turns of any
    other dialogue, none of which says the same as the true reply or another; the draw depends on nothing but `seed`
    and the turn's place. Raises `DataError` where there are too few replies to draw from.
    """
    pool = [
        (index, turn.text)
        for index, dialogue in enumerate(dialogues)
        for turn in dialogue.turns
        if turn.role is Role.BOT and turn.text.strip()
    ]
    asked = []
    for index, dialogue in enumerate(dialogues[:limit]):
        stored = {choice.reply.strip(): choice.wrong for choice in dialogue.choices}
        for place, turn in enumerate(dialogue.turns):
            if turn.role is Role.BOT and place not in dialogue.untrained:
                key = f"{seed}:{index}:{place}"
                wrong = stored.get(turn.text) or _drawn(pool, index, turn.text, number, key)
                asked.append(Question(dialogue.facts, dialogue.turns[:place], (*wrong, turn.text)))
    return asked


def _drawn(pool: Sequence[tuple[int, str]], own: int, answer: str, number: int, key: str) -> list[str]:
    rng = random.Random(key)
    chosen: list[str] = []
    known = {tuple(normalised(answer))}
    # Enough draws for any pool of some hundred different replies; the second loop is for tiny ones.
    for index, text in [rng.choice(pool) for _ in range(number * 10)] + rng.sample(pool, len(pool)):
        if len(chosen) == number - 1:
            return chosen
        words = tuple(normalised(text))
        if index != own and words not in known:
            known.add(words)
            chosen.append(text)
    raise DataError(
        f"ranking needs {number - 1} different replies from other dialogues; this data has {len(chosen)}. "
        "Take a larger file."
    )


def digest(asked: Sequence[Question]) -> str:
    """Return a short hash of all candidate sets: figures compare only where it is the same."""
    total = hashlib.sha256()
    for question in asked:
        total.update("\0".join(question.candidates).encode() + b"\1")
    return total.hexdigest()[:12]


class Scores(NamedTuple):
    """What a model thinks of each of a question's candidates, in three ways; `head` is empty without a head."""

    likelihood: list[float]
    pmi: list[float]
    head: list[float]


class Ranker:
    """Scores candidates with one model.

    By likelihood: the mean log-probability of a candidate's tokens, in nats. By pointwise mutual information: how much
    likelier the context makes the whole candidate, log p(candidate | context) - log p(candidate), in nats, so that
    what anybody might say at any time counts for little (Li et al. 2016, arXiv:1510.03055, there to choose replies). By
    the next-utterance head, where the checkpoint has one.

    A context is computed once. All candidates stand behind it in one row, each at the positions that follow the
    context, and each sees the context and itself alone (a block mask), so that no candidate is padded.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, *, window: int, head: nn.Module | None = None) -> None:
        self._model, self._layout, self._window, self._head = model, layout, window, head
        self._output: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        self._nothing = layout.prompt((), (), max_tokens=window, reserve=window // 2).ids

    @torch.inference_mode()
    def scores(self, question: Question) -> Scores:
        """Return the scores of each candidate, by their tokens and the end token."""
        candidates = [self._layout.reply_ids(text) for text in question.candidates]
        reserve = min(max(map(len, candidates)), self._window // 2)
        context = self._layout.prompt(question.facts, question.turns, max_tokens=self._window, reserve=reserve).ids
        candidates = [ids[: self._window - len(context)] for ids in candidates]
        log_probs, ends = self._pass(context, candidates)
        without, _ = self._pass(self._nothing, candidates)
        return Scores(
            likelihood=[float(own.mean()) for own in log_probs],
            pmi=[float(own.sum() - other.sum()) for own, other in zip(log_probs, without, strict=True)],
            head=[] if self._head is None else self._head(ends.float())[:, 0].tolist(),
        )

    def _pass(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> tuple[list[Tensor], Tensor]:
        """Return the log-probabilities of each candidate's tokens, and the states at the candidates' ends (n, H)."""
        states = self._states(context, candidates)
        log_probs, ends, start = [], [], len(context)
        for ids in candidates:
            # The state before each token predicts it; before the first stands the context's last.
            before = [len(context) - 1, *range(start, start + len(ids) - 1)]
            logits = (states[before] @ self._output.to(states.dtype).T).float()
            targets = torch.tensor(ids, device=logits.device)
            log_probs.append(-nn.functional.cross_entropy(logits, targets, reduction="none"))
            start += len(ids)
            ends.append(start - 1)
        return log_probs, states[ends]

    def _states(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Run the trunk over context and candidates; (context and candidates together, H)."""
        device = self._model.device
        ids = torch.tensor([[*context, *(i for candidate in candidates for i in candidate)]], device=device)
        positions = [*range(len(context))]
        owner = [-1] * len(context)
        for number, candidate in enumerate(candidates):
            positions += range(len(context), len(context) + len(candidate))
            owner += [number] * len(candidate)
        owners = torch.tensor(owner, device=device)
        mask = ((owners[None, :] == owners[:, None]) | (owners[None, :] == -1)).tril()
        output: Any = self._model.base_model(
            input_ids=ids,
            position_ids=torch.tensor([positions], device=device),
            attention_mask=mask[None, None],
            use_cache=False,
            **self._types(context, candidates),
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def _types(self, context: Sequence[int], candidates: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the row's token types, each candidate's as behind the context; nothing for a layout without them."""
        types = self._layout.token_types(context)
        if types is None:
            return {}
        for candidate in candidates:
            types = [*types, *(self._layout.token_types([*context, *candidate]) or [])[len(context) :]]
        return {"token_type_ids": torch.tensor([types], device=self._model.device)}


def rank(ranker: Ranker, asked: Sequence[Question], progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Return hits@1 and mean reciprocal rank over all questions, in each of the ways of `Scores`."""
    sums: dict[str, list[tuple[float, float]]] = {way: [] for way in Scores._fields}
    for done, question in enumerate(asked, 1):
        for way, scores in ranker.scores(question)._asdict().items():
            if scores:
                sums[way].append(hit_and_reciprocal_rank(scores, len(scores) - 1))
        progress(done)
    figures: dict[str, Any] = {}
    for way, pairs in sums.items():
        prefix = "" if way == "likelihood" else f"{way}_"
        if pairs:
            figures[f"{prefix}hits_at_1"] = sum(hit for hit, _ in pairs) / len(pairs)
            figures[f"{prefix}mrr"] = sum(reciprocal for _, reciprocal in pairs) / len(pairs)
    return figures | {
        "num_candidates": max((len(question.candidates) for question in asked), default=0),
        "candidates_sha256": digest(asked),
        "num_ranked": len(asked),
    }
