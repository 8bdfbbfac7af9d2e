"""Drawing without sorting: as often as the filters of `transformers` leave it, and by each row's own noise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import MinPLogitsWarper, TopPLogitsWarper

from worker.engine.rejection import draw_by_rejection, relative
from worker.engine.request import Request, SamplingParams
from worker.engine.request import Sequence as Running
from worker.engine.sampler import NUM_CANDIDATES, draw

NUM_IDS = 400
NUM_DRAWS = 20_000


def even_scores(num_ids: int = NUM_IDS) -> torch.Tensor:
    return torch.randn(1, num_ids, generator=torch.Generator().manual_seed(1))


def drawn(scores: torch.Tensor, params: SamplingParams, keys: Sequence[int]) -> torch.Tensor:
    tokens, is_open = draw_by_rejection(
        relative(scores).expand(len(keys), -1), [params] * len(keys), keys, [0] * len(keys)
    )
    assert not any(is_open)
    return tokens


@pytest.mark.parametrize(
    ("params", "warp"),
    [
        (SamplingParams(top_p=0.7), TopPLogitsWarper(0.7)),
        (SamplingParams(top_p=1.0), lambda _, scores: scores),
        (SamplingParams(top_p=1.0, min_p=0.1), MinPLogitsWarper(0.1)),
    ],
    ids=["top_p", "all", "min_p"],
)
def test_tokens_come_as_often_as_the_filters_leave_them(params: SamplingParams, warp: TopPLogitsWarper) -> None:
    scores = even_scores()
    expected = warp(None, scores.clone()).softmax(-1)[0]
    counts = torch.bincount(drawn(scores, params, range(NUM_DRAWS)), minlength=NUM_IDS) / NUM_DRAWS
    assert counts[expected == 0].sum() == 0
    assert (counts - expected).abs().sum() / 2 < 0.07  # as far apart as chance brings so many draws


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    params = SamplingParams(top_p=0.5)
    together = drawn(even_scores(), params, range(50))
    alone = [int(drawn(even_scores(), params, [key])) for key in range(50)]
    assert together.tolist() == alone


def test_a_row_that_is_dropped_again_and_again_is_left_open() -> None:
    scores = even_scores().expand(20, -1)
    tokens, is_open = draw_by_rejection(relative(scores), [SamplingParams(top_p=1e-6)] * 20, range(20), [0] * 20)
    assert {True, False} == {*is_open}
    assert all(is_open[row] or tokens[row] == scores[0].argmax() for row in range(20))


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = even_scores()
    scores[:, ::2] = float("-inf")
    assert (drawn(scores, SamplingParams(top_p=1.0), range(500)) % 2 == 1).all()


def test_a_row_without_a_finite_score_is_left_open() -> None:
    nothing = torch.full((1, 10), float("nan"))
    assert draw_by_rejection(relative(nothing), [SamplingParams()], [0], [0])[1] == [True]


def test_rows_that_need_an_order_are_sorted_beside_rows_that_do_not() -> None:
    scores = even_scores().expand(4, -1)
    params = [SamplingParams(top_k=1), SamplingParams(), SamplingParams(typical_p=0.5), SamplingParams(top_k=1, seed=3)]
    rows = [Running(Request(prompt_ids=(1,), params=own)) for own in params]
    chosen = draw(scores, rows).tolist()
    assert chosen[0] == chosen[3] == scores[0].argmax()
    assert chosen[1] == drawn(scores[:1] / params[1].temperature, params[1], [rows[1].noise_key]).item()


def test_what_no_attempt_decides_is_drawn_from_the_best() -> None:
    scores = torch.zeros(1, 10 * NUM_CANDIDATES[0])
    scores[0, 7] = 1.0
    sequence = Running(Request(prompt_ids=(1,), params=SamplingParams(temperature=1.0, top_p=0.0005)))
    params = SamplingParams(temperature=1.0, top_p=0.0005)
    assert draw_by_rejection(relative(scores), [params], [sequence.noise_key], [0])[1] == [True]
    assert draw(scores, [sequence]).tolist() == [7]
