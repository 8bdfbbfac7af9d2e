"""A reply is the same however it is computed: alone, beside others, from a known prefix, after that was forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.tiny_families import FAMILIES, prompts
from worker.engine.engine import Engine
from worker.engine.request import Request, SamplingParams

WAIT_S = 60
NUM_TURNS = 3
PERSONA, *TALKS = prompts(30, 6, 3, 9, 5, 7)
WAYS = {
    "greedy": SamplingParams(do_sample=False, max_new_tokens=8),
    "seeded": SamplingParams(seed=7, temperature=1.2, top_p=0.95, max_new_tokens=8),
    "beams": SamplingParams(num_beams=2, max_new_tokens=6),
}
Replies = list[list[tuple[int, ...]]]


def converse(engine: Engine, params: SamplingParams, *, together: bool) -> Replies:
    """Return the replies of conversations that share a persona, each turn's prompt holding all that was said before."""
    said = [PERSONA + talk for talk in TALKS]
    replies: Replies = [[] for _ in TALKS]
    for turn in range(NUM_TURNS):
        requests = [Request(prompt_ids=prompt, params=params) for prompt in said]
        if together:
            completions = [future.result(WAIT_S) for future in [engine.submit(request) for request in requests]]
        else:
            completions = [engine.submit(request).result(WAIT_S) for request in requests]
        for place, completion in enumerate(completions):
            replies[place].append(completion.ids)
            said[place] += (*completion.ids, turn, *TALKS[place])
    return replies


def engine_of(family: Callable[[], object], *, max_num_seqs: int, max_saved_bytes: int) -> Engine:
    return Engine(family(), max_num_seqs=max_num_seqs, max_step_tokens=32, max_saved_bytes=max_saved_bytes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_is_the_same_alone_batched_reused_and_after_eviction(family: str, way: str) -> None:
    params = WAYS[way]
    alone = converse_anew(family, params)
    for max_num_seqs, max_saved_bytes, together in [
        (8, 0, True),  # beside each other, every conversation in a row that it keeps
        (8, 0, False),
        (2, 1 << 20, True),  # more conversations than rows: what makes room is saved and comes back
        (2, 0, False),  # or is forgotten
    ]:
        with engine_of(FAMILIES[family], max_num_seqs=max_num_seqs, max_saved_bytes=max_saved_bytes) as engine:
            assert converse(engine, params, together=together) == alone
            counts = engine.prefix_counts
        assert counts.num_reused_tokens > 0


def converse_anew(family: str, params: SamplingParams) -> Replies:
    """The same conversations, every reply from an engine that has seen nothing before."""
    said = [PERSONA + talk for talk in TALKS]
    replies: Replies = [[] for _ in TALKS]
    for turn in range(NUM_TURNS):
        for place, prompt in enumerate(said):
            with Engine(FAMILIES[family](), max_num_seqs=params.num_beams) as engine:
                ids = engine.submit(Request(prompt_ids=prompt, params=params)).result(WAIT_S).ids
            replies[place].append(ids)
            said[place] += (*ids, turn, *TALKS[place])
    return replies
