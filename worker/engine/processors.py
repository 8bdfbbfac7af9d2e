"""What changes scores before a token is chosen: biases, penalties and bans, each as `transformers` computes it.

Works in place on a whole batch of scores (B, V), in which every sequence has parameters of its own. Pure functions
otherwise: nothing is remembered between steps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from worker.engine.request import Sequence as Running

NO_SCORE = float("-inf")


def add_biases(scores: Tensor, sequences: Sequence[Running]) -> None:
    """Add each sequence's biases, as `SequenceBiasLogitsProcessor`: those of phrases apply to their last token."""
    entries = [
        (row, phrase[-1], bias)
        for row, sequence in enumerate(sequences)
        for phrase, bias in sequence.params.biases
        if completes(sequence.ids, phrase)
    ]
    if entries:
        rows, columns, biases = zip(*entries, strict=True)
        values = torch.tensor(biases, dtype=scores.dtype, device=scores.device)
        scores.index_put_(_places(rows, columns, scores.device), values, accumulate=True)


def penalise_repetition(scores: Tensor, sequences: Sequence[Running]) -> None:
    """Divide positive and multiply negative scores of tokens that occur in prompt or reply."""
    penalties = [sequence.params.repetition_penalty for sequence in sequences]
    if all(penalty == 1.0 for penalty in penalties):
        return
    ids = _table([sequence.ids for sequence in sequences]).to(scores.device)
    by = torch.tensor(penalties, device=scores.device)[:, None]
    seen = scores.gather(1, ids)
    scores.scatter_(1, ids, torch.where(seen < 0, seen * by, seen / by))


def forbid(scores: Tensor, sequences: Sequence[Running], stop_ids: frozenset[int]) -> None:
    """Take the score of every token that may not come next."""
    places = [(row, token) for row, sequence in enumerate(sequences) for token in forbidden_ids(sequence, stop_ids)]
    if places:
        rows, columns = zip(*places, strict=True)
        scores[_places(rows, columns, scores.device)] = NO_SCORE


def forbidden_ids(sequence: Running, stop_ids: frozenset[int]) -> Iterable[int]:
    """Yield what no_repeat_ngram_size, bad_words and min_new_tokens forbid; bad words never forbid to end the reply."""
    params = sequence.params
    if params.no_repeat_ngram_size:
        yield from repeating_ids(sequence.ids, params.no_repeat_ngram_size)
    for phrase in params.bad_words:
        is_stop = len(phrase) == 1 and phrase[0] in stop_ids
        if not is_stop and completes(sequence.ids, phrase):
            yield phrase[-1]
    if sequence.num_new_tokens < params.min_new_tokens:
        yield from stop_ids


def completes(ids: Sequence[int], phrase: Sequence[int]) -> bool:
    """Tell whether the last token of `phrase` would complete it after `ids`."""
    num_before = len(phrase) - 1
    return not num_before or list(ids[-num_before:]) == list(phrase[:-1])


def repeating_ids(ids: Sequence[int], size: int) -> list[int]:
    """The tokens that would complete an n-gram of `size` tokens that occurs in `ids` already."""
    first = len(ids) + 1 - size
    if first < 0:
        return []
    start = list(ids[first:])
    return [ids[i + size - 1] for i in range(first) if list(ids[i : i + size - 1]) == start]


def _table(rows: Sequence[list[int]]) -> Tensor:
    """Rows of ids as one tensor (B, L), each filled up with its first id: a copy of it says nothing new."""
    longest = max(map(len, rows))
    flat = array("q")  # of which torch makes a tensor much faster than of lists
    for row in rows:
        flat.extend(row)
        flat.extend(row[:1] * (longest - len(row)))
    return torch.frombuffer(flat, dtype=torch.int64).view(len(rows), longest)


def _places(rows: Sequence[int], columns: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    rows_and_columns = torch.tensor([rows, columns], device=device)
    return rows_and_columns[0], rows_and_columns[1]
