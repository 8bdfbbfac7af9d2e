"""The sampler against the logits processors of `transformers`, on the same scores."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from worker.engine.noise import gumbel
from worker.engine.processors import repeating_ids
from worker.engine.request import Request, SamplingParams, Sequence
from worker.engine.sampler import Sampler, candidates, filtered

VOCABULARY_SIZE = 700  # more than the sampler's candidates, so that both of its ways are taken
STOPS, BANNED = (3,), (0, 699)
SAMPLER = Sampler(stop_ids=STOPS, banned_ids=BANNED)

# Of the histories' few tokens, so that phrases are completed; the stop token among them.
phrases = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3.0),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.999)),
    top_k=st.one_of(st.just(0), st.integers(1, 60), st.integers(200, 2000)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    typical_p=st.one_of(st.just(1.0), st.floats(0.05, 0.999)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    bad_words=st.lists(phrases, max_size=3).map(tuple),
    biases=st.dictionaries(phrases, st.floats(-5.0, 5.0), max_size=3).map(lambda chosen: tuple(chosen.items())),
    no_repeat_ngram_size=st.integers(0, 4),
    min_new_tokens=st.integers(0, 5),
    seed=st.integers(0, 2**63 - 1),
)
# Few different tokens, so that n-grams repeat.
histories = st.tuples(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.lists(st.integers(1, 5), max_size=10))


def sequence(prompt: list[int], reply: list[int], own: SamplingParams) -> Sequence:
    made = Sequence(Request(prompt_ids=tuple(prompt), params=own))
    made.ids += reply
    return made


def scores(*shape: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def probabilities(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """What the sampler draws from, over the whole vocabulary."""
    processed = SAMPLER.processed(logits, sequences)
    own = [s.params for s in sequences]
    warped = torch.full_like(processed, float("-inf"))
    scaled = processed / torch.tensor([[p.temperature] for p in own])
    for rows, ids, kept in filtered(scaled, own):
        for place, row in enumerate(rows):
            warped[row] = warped[row].scatter(0, ids[place], kept[place])
    return warped.softmax(-1)


def expected(logits: torch.Tensor, drawn: Sequence) -> torch.Tensor:
    """What `generate` draws from, with its processors in its order."""
    p = drawn.params
    chain: list[Any] = []
    if p.biases:
        chain.append(SequenceBiasLogitsProcessor([[list(phrase), bias] for phrase, bias in p.biases]))
    if p.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(p.no_repeat_ngram_size))
    if bad_words := [list(phrase) for phrase in p.bad_words if phrase != STOPS]:
        chain.append(NoBadWordsLogitsProcessor(bad_words, eos_token_id=list(STOPS)))
    if p.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(len(drawn.request.prompt_ids), p.min_new_tokens, list(STOPS)))
    chain.append(SuppressTokensLogitsProcessor(list(BANNED)))
    chain.append(TemperatureLogitsWarper(p.temperature))
    if p.top_k:
        chain.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1.0:
        chain.append(TopPLogitsWarper(p.top_p))
    chain.append(MinPLogitsWarper(p.min_p))
    if p.typical_p < 1.0:
        chain.append(TypicalLogitsWarper(p.typical_p))
    result = LogitsProcessorList(chain)(torch.tensor([drawn.ids]), logits[None].clone())
    return result[0].softmax(-1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(histories, params), min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from([0.3, 2.0, 8.0]),
)
def test_what_is_drawn_from_is_what_generate_draws_from(
    rows: list[tuple[tuple[list[int], list[int]], SamplingParams]], seed: int, scale: float
) -> None:
    sequences = [sequence(prompt, reply, own) for (prompt, reply), own in rows]
    logits = scores(len(rows), VOCABULARY_SIZE, seed=seed, scale=scale)
    ours = probabilities(logits, sequences)
    for row, drawn in enumerate(sequences):
        theirs = expected(logits[row], drawn)
        # A token at the very edge of top_p may fall on either side in fp32.
        assert (ours[row] - theirs).abs().sum() < 2e-2
        assert ((ours[row] > 0) != (theirs > 0)).sum() <= 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(histories, params), min_size=2, max_size=5), st.integers(0, 10**6))
def test_a_token_does_not_depend_on_the_neighbours(
    rows: list[tuple[tuple[list[int], list[int]], SamplingParams]], seed: int
) -> None:
    sequences = [sequence(prompt, reply, own) for (prompt, reply), own in rows]
    logits = scores(len(rows), VOCABULARY_SIZE, seed=seed)
    alone = [SAMPLER.sample(logits[i : i + 1], [drawn])[0] for i, drawn in enumerate(sequences)]
    assert SAMPLER.sample(logits, sequences) == alone


def test_tokens_come_as_often_as_their_probability_says() -> None:
    num_draws = 20_000
    own = [
        SamplingParams(temperature=1.0, top_k=5, top_p=1.0, repetition_penalty=1.0, seed=s) for s in range(num_draws)
    ]
    logits = scores(1, VOCABULARY_SIZE)
    counts = Counter(SAMPLER.sample(logits.expand(num_draws, -1), [sequence([1], [], p) for p in own]))
    chances = probabilities(logits, [sequence([1], [], own[0])])[0]
    for token, chance in enumerate(chances.tolist()):
        deviation = (num_draws * chance * (1 - chance)) ** 0.5
        assert abs(counts[token] - num_draws * chance) <= 4.5 * deviation


def test_noise_has_the_mean_and_spread_of_gumbel_noise() -> None:
    noise = gumbel(range(200), [0] * 200, torch.arange(500).expand(200, -1))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(1.2825, abs=0.02)
    assert noise.isfinite().all()


def test_noise_differs_between_seeds_positions_and_tokens() -> None:
    ids = torch.arange(100).expand(4, -1)
    noise = gumbel([1, 1, 2, 2**63 - 1], [0, 1, 0, 0], ids)
    assert len(set(noise.flatten().tolist())) == 400
    assert torch.equal(noise, gumbel([1, 1, 2, 2**63 - 1], [0, 1, 0, 0], ids))


def test_noise_of_neighbouring_seeds_is_not_correlated() -> None:
    noise = gumbel([*range(64)], [5] * 64, torch.arange(1000).expand(64, -1))
    correlation = torch.corrcoef(noise) - torch.eye(64)
    assert correlation.abs().max() < 0.17  # five standard deviations


def test_greedy_takes_the_best_token() -> None:
    logits = scores(3, VOCABULARY_SIZE)
    own = SamplingParams(do_sample=False, repetition_penalty=1.0)
    best = logits[:, 1:699].argmax(-1) + 1
    assert SAMPLER.sample(logits, [sequence([1], [], own)] * 3) == best.tolist()


def test_a_row_without_finite_scores_has_no_token() -> None:
    logits = scores(3, VOCABULARY_SIZE)
    logits[0], logits[1, 5] = float("-inf"), float("nan")
    for own in (SamplingParams(), SamplingParams(do_sample=False), SamplingParams(top_p=1.0)):
        tokens = SAMPLER.sample(logits, [sequence([1], [], own)] * 3)
        assert tokens[:2] == [None, None]
        assert tokens[2] is not None


@pytest.mark.parametrize(
    ("ids", "size", "repeating"),
    [([1, 2, 1], 2, [2]), ([1, 2, 1, 3, 1], 2, [2, 3]), ([1, 2], 3, []), ([4, 4], 1, [4, 4]), ([1, 2, 3], 2, [])],
)
def test_repeating_ids_are_those_that_complete_an_ngram_again(ids: list[int], size: int, repeating: list[int]) -> None:
    assert repeating_ids(ids, size) == repeating


def test_a_bad_word_is_forbidden_where_its_beginning_precedes_it() -> None:
    own = SamplingParams(do_sample=False, bad_words=((7, 8), (9,), (3,)))
    logits = scores(1, VOCABULARY_SIZE)
    assert SAMPLER.processed(logits, [sequence([1, 7], [], own)])[0, [8, 9]].isinf().all()
    assert SAMPLER.processed(logits, [sequence([7, 1], [], own)])[0, [8, 3]].isfinite().all()  # 3 ends the reply


def test_a_bias_makes_a_token_win() -> None:
    own = SamplingParams(do_sample=False, biases=(((17,), 100.0),))
    assert SAMPLER.sample(scores(1, VOCABULARY_SIZE), [sequence([1], [], own)]) == [17]


def test_a_flat_distribution_needs_more_than_the_candidates() -> None:
    _, _, is_whole = candidates(torch.zeros(1, VOCABULARY_SIZE), [SamplingParams(top_p=0.9)], 256)
    assert is_whole == [False]
