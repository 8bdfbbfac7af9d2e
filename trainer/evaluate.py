"""How well a model predicts held-out dialogue, and what its persona adds: from sums, divided once.

Owns the counting rules. Knows a model only as two functions: rows → hidden states, and the output embedding.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from personas.conversation import Role
from personas.layout import Example, Layout, Part, merged
from personas.layout.turns import merged_counts
from trainer.data import Batch, bucketed
from trainer.formats import Dialogue

Hidden = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Score:
    """Sums over the bot's turns. NLL in nats; words are what white space parts; the stop token is a token only."""

    nll_text: float = 0.0
    nll_stop: float = 0.0
    num_tokens: int = 0
    num_stops: int = 0
    num_words: int = 0
    num_bytes: int = 0
    num_dialogues: int = 0
    num_turns_left_out: int = field(default=0)

    def metrics(self) -> dict[str, float | int]:
        """Return the figures by their fixed names; `ppl_token` includes the stop token, the others leave it out."""
        return {
            "ppl_token": _exp((self.nll_text + self.nll_stop) / max(self.num_tokens, 1)),
            "ppl_word": _exp(self.nll_text / max(self.num_words, 1)),
            "bpb": self.nll_text / math.log(2) / max(self.num_bytes, 1),
            "num_tokens": self.num_tokens,
            "num_words": self.num_words,
            "num_bytes": self.num_bytes,
            "num_turns": self.num_stops,
            "num_dialogues": self.num_dialogues,
            "num_turns_left_out": self.num_turns_left_out,
        }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def score_dialogues(
    dialogues: Iterable[Dialogue],
    layout: Layout,
    hidden: Hidden,
    head: Tensor,
    *,
    max_tokens: int,
    micro_tokens: int = 8192,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> Score:
    """Score every bot turn once, each with the persona and the turns before it that fit `max_tokens`.

    As in training, turns that the data marks as context only carry no loss.
    """
    score = Score()
    examples: list[Example] = []
    for dialogue in dialogues:
        examples += _examples(dialogue, layout, max_tokens, score)
        if len(examples) >= 256:
            _add(score, bucketed(examples, micro_tokens), hidden, head, device)
            progress(score.num_dialogues)
            examples = []
    _add(score, bucketed(examples, micro_tokens), hidden, head, device)
    progress(score.num_dialogues)
    return score


def swapped(dialogues: Sequence[Dialogue], *, seed: int = 1) -> list[Dialogue]:
    """Return the dialogues, each under the persona of another one: a seeded ring, so that nobody keeps their own."""
    order = list(range(len(dialogues)))
    random.Random(f"swap:{seed}").shuffle(order)
    others = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [replace(dialogue, facts=dialogues[others[place]].facts) for place, dialogue in enumerate(dialogues)]


def without_persona(dialogues: Iterable[Dialogue]) -> list[Dialogue]:
    """Return the dialogues with no facts at all."""
    return [replace(dialogue, facts=()) for dialogue in dialogues]


def swap_figures(right: Score, other: Score, none: Score) -> dict[str, float]:
    """Return what the persona is worth, from the same turns scored under the right persona, another, and none.

    `swap_nll` and `none_nll`: how much the right persona lowers the NLL of the text, in nats per word (negative:
    it lowers it). `persona_lowers_ppl`: the share of word perplexity that goes with the right persona against none.
    """
    own, swap, bare = (score.nll_text / max(score.num_words, 1) for score in (right, other, none))
    return {
        "swap_nll": own - swap,
        "none_nll": own - bare,
        "ppl_word_swapped": _exp(swap),
        "ppl_word_none": _exp(bare),
        "persona_lowers_ppl": 1.0 - _exp(own - bare),
    }


def _examples(dialogue: Dialogue, layout: Layout, max_tokens: int, score: Score) -> list[Example]:
    examples = layout.examples_of(dialogue.facts, dialogue.turns, max_tokens=max_tokens, untrained=dialogue.untrained)
    texts = [text for example in examples for text in example.texts]
    score.num_turns_left_out += max(_num_targets(dialogue) - len(texts), 0)  # longer than the window
    score.num_words += sum(len(text.split()) for text in texts)
    score.num_bytes += sum(len(text.encode()) for text in texts)
    score.num_dialogues += 1
    return examples


def _num_targets(dialogue: Dialogue) -> int:
    """Count the bot's turns, messages in a row as one, without those that are context only."""
    count = start = 0
    for (role, _), length in zip(merged(dialogue.turns), merged_counts(dialogue.turns), strict=True):
        count += role is Role.BOT and not dialogue.untrained.issuperset(range(start, start + length))
        start += length
    return count


@torch.inference_mode()
def _add(score: Score, batches: Sequence[Batch], hidden: Hidden, head: Tensor, device: str | torch.device) -> None:
    for batch in batches:
        ids, parts = padded(batch, device)
        rows, columns = (parts[:, 1:] != Part.CONTEXT).nonzero(as_tuple=True)
        states = hidden(ids)[rows, columns]
        kinds, targets = parts[rows, columns + 1], ids[rows, columns + 1]
        for start in range(0, len(states), 512):
            piece = slice(start, start + 512)
            logits = (states[piece] @ head.to(states.dtype).T).float()
            nll = torch.nn.functional.cross_entropy(logits, targets[piece], reduction="none").double()
            is_stop = kinds[piece] == Part.STOP
            score.nll_stop += float(nll[is_stop].sum())
            score.nll_text += float(nll[~is_stop].sum())
        score.num_tokens += len(targets)
        score.num_stops += int((kinds == Part.STOP).sum())


def padded(batch: Batch, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Return ids and parts (B, T) on `device`, right-padded; causal attention keeps the padding harmless."""
    length = max(map(len, batch.ids))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in batch.ids])
    parts = torch.tensor([[int(p) for p in row] + [0] * (length - len(row)) for row in batch.parts])
    return ids.to(device), parts.to(device)
