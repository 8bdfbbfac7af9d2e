"""What replies and rankings are worth, as numbers. Pure functions over strings and scores; knows no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_PUNCTUATION = re.compile(r"[!\"#$%&()*+,\-./:;<=>?@\[\]\\^`{|}~_']")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
NUM_OWN_REPLIES = 5


def normalised(text: str) -> list[str]:
    """Return the words that F1 compares: lower case, without punctuation and without a, an, the (ParlAI's rule)."""
    plain = _PUNCTUATION.sub(" ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return _ARTICLES.sub(" ", plain).split()


def f1(reply: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of the bags of words, as ParlAI's `F1Metric` computes it."""
    said, wanted = Counter(normalised(reply)), Counter(normalised(answer))
    num_same = sum((said & wanted).values())
    return 2.0 * num_same / (said.total() + wanted.total()) if num_same else 0.0


def words(text: str) -> list[str]:
    """Return the lower-case words of a reply; punctuation parts words and counts for nothing."""
    return re.findall(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*", text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of `n` tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def distinct(replies: Iterable[str], n: int) -> float:
    """Return the share of different n-grams among all n-grams of all replies (Li et al. 2016); 0 where none is."""
    found = [gram for reply in replies for gram in ngrams(words(reply), n)]
    return len(set(found)) / len(found) if found else 0.0


def repeated(reply: str, n: int = 4) -> float:
    """Return the share of a reply's n-grams that it has already said (seq-rep-n of Welleck et al. 2020)."""
    found = ngrams(words(reply), n)
    return 1.0 - len(set(found)) / len(found) if found else 0.0


def copied(reply: str, own: Sequence[str], n: int = 4) -> float:
    """Return the share of a reply's n-grams that stand in the bot's last five turns, `own` being all of them.

    A reply of fewer than `n` words is copied where one of those turns is the same words.
    """
    said, recent = words(reply), [words(turn) for turn in own[-NUM_OWN_REPLIES:]]
    found = ngrams(said, n)
    if not found:
        return float(bool(said) and said in recent)
    known = {gram for turn in recent for gram in ngrams(turn, n)}
    return sum(gram in known for gram in found) / len(found)


def hit_and_reciprocal_rank(scores: Sequence[float], gold: int) -> tuple[float, float]:
    """Return what the gold candidate's rank is worth: hits@1 and 1/rank, higher scores ranking first.

    Among candidates of the same score every order is equally likely and both figures are expectations, so that a
    scorer that tells nothing apart gets 1/20 for 20 candidates, not 1. A score that is no number ranks last.
    """
    plain = [-math.inf if math.isnan(score) else score for score in scores]
    num_better = sum(score > plain[gold] for score in plain)
    num_same = sum(score == plain[gold] for score in plain)
    ranks = range(num_better + 1, num_better + num_same + 1)
    return (0.0 if num_better else 1.0 / num_same), sum(1.0 / rank for rank in ranks) / num_same


@dataclass(frozen=True, slots=True)
class Said:
    """A generated reply with what it is judged by. `own` are the bot's turns before it, `num_tokens` the reply's."""

    reply: str
    answer: str
    own: tuple[str, ...]
    num_tokens: int
    has_stopped: bool


def reply_figures(said: Sequence[Said]) -> dict[str, float | int]:
    """Return the figures of a list of replies, each a mean over the replies unless its name says otherwise."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / max(len(said), 1)

    replies = [one.reply for one in said]
    return {
        "f1": mean(f1(one.reply, one.answer) for one in said),
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "repeated_4": mean(repeated(reply) for reply in replies),
        "copied_4": mean(copied(one.reply, one.own) for one in said),
        "empty": mean(not reply for reply in replies),
        "stopped": mean(one.has_stopped for one in said),
        "questions": mean("?" in reply for reply in replies),
        "mean_words": mean(len(words(reply)) for reply in replies),
        "mean_tokens": mean(one.num_tokens for one in said),
        "num_replies": len(said),
    }
