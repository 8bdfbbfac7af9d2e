"""The engine under random load: joins, cancels, deadlines, crashes, short memory, beams and candidates together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest
import torch
from structlog.testing import capture_logs

from tests.helpers.tiny_families import prompts, tiny_gpt2
from worker.engine.engine import Engine
from worker.engine.errors import DeadlinePassed, EngineBusy, GenerationFailed
from worker.engine.request import Chunk, Completion, Request, SamplingParams
from worker.engine.runner import Computed

WAIT_S = 60
POISON = 66
NUM_SLOTS = 6


@pytest.fixture(autouse=True)
def _unwritten_logs() -> Iterator[None]:
    """The traceback of every crash, written in colour, takes longer than all the rest."""
    with capture_logs():
        yield


class Unsteady:
    """Stands before an engine's runner: fails on poison, and has no memory for more than 24 tokens at once."""

    def __init__(self, engine: Engine) -> None:
        self._inner = engine._runner
        self.vocabulary_size = self._inner.vocabulary_size
        self.attach, self.release = self._inner.attach, self._inner.release
        engine._runner = self

    def run(self, chunks: Sequence[Chunk]) -> Computed:
        slots = [chunk.sequence.slot for chunk in chunks]
        assert len(set(slots)) == len(slots) <= NUM_SLOTS
        if sum(chunk.num_tokens for chunk in chunks) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if any(chunk.sequence.request.prompt_ids[0] == POISON for chunk in chunks):
            raise RuntimeError("poison")
        return self._inner.run(chunks)


def asked(draw: random.Random, prompt: tuple[int, ...], seed: int) -> list[Request]:
    """One request, or several candidates of one prompt."""
    if draw.random() < 0.1:
        prompt = (POISON, *prompt[1:])
    group = (f"server {draw.randint(0, 2)}", f"conversation {draw.randint(0, 5)}")
    timeout_s = draw.choice([None, None, None, 0.001, 60.0])
    num_new = draw.randint(1, 20)
    if draw.random() < 0.2:
        return [
            _request(prompt, SamplingParams(num_beams=draw.randint(2, 4), max_new_tokens=num_new), group, timeout_s)
        ]
    num_candidates = draw.choice([1, 1, 1, 3])
    return [
        _request(prompt, SamplingParams(seed=seed + place, max_new_tokens=num_new, temperature=1.5), group, timeout_s)
        for place in range(num_candidates)
    ]


def _request(
    prompt: tuple[int, ...], params: SamplingParams, group: tuple[str, str], timeout_s: float | None
) -> Request:
    return Request(prompt_ids=prompt, params=params, group=group, timeout_s=timeout_s)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_request_ends_exactly_one_way_and_every_slot_is_free_again(seed: int) -> None:
    draw = random.Random(seed)
    given = [tuple(67 + token % 200 for token in p) for p in prompts(*(draw.randint(1, 60) for _ in range(50)))]
    engine = Engine(tiny_gpt2(), stop_ids=range(20), max_num_seqs=NUM_SLOTS, max_step_tokens=32, max_num_waiting=60)
    Unsteady(engine)
    futures: list[Future[Completion]] = []
    ends: Counter[str] = Counter()

    def note(future: Future[Completion]) -> None:
        ends["cancelled" if future.cancelled() else type(future.exception() or future.result()).__name__] += 1

    with engine:
        for position, prompt in enumerate(given):
            try:
                added = engine.submit_together(asked(draw, prompt, position))
            except EngineBusy:
                wait(futures[:-10], WAIT_S)
                continue
            for future in added:
                future.add_done_callback(note)
            futures += added
            if draw.random() < 0.2:
                draw.choice(futures).cancel()
        wait(futures, WAIT_S)
        # Last requests, so that those cancelled at the end have left as well.
        wait(
            [engine.submit(Request(prompt_ids=(1,), params=SamplingParams(max_new_tokens=2))) for _ in range(9)], WAIT_S
        )
    assert sum(ends.values()) == len(futures)
    assert set(ends) == {"Completion", "GenerationFailed", "DeadlinePassed", "cancelled"}
    assert ends["Completion"] > 20
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    assert sorted(engine._scheduler._free_slots) == [*range(NUM_SLOTS)]
    assert not engine._searches
    assert engine._attempts.num_out_of_memory == 1


def test_requests_around_one_that_crashes_the_model_get_the_same_replies_as_without_it() -> None:
    given = [tuple(67 + token % 200 for token in p) for p in prompts(4, 20, 9)]
    params = SamplingParams(do_sample=False, max_new_tokens=12)
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        alone = [engine.submit(Request(prompt_ids=p, params=params)).result(WAIT_S).ids for p in given]
    engine = Engine(tiny_gpt2(), max_num_seqs=4)
    Unsteady(engine)
    with engine:
        poisoned = engine.submit(Request(prompt_ids=(POISON, 70), params=params))
        futures = [engine.submit(Request(prompt_ids=p, params=params)) for p in given]
        with pytest.raises(GenerationFailed, match="2 times"):
            poisoned.result(WAIT_S)
        assert [future.result(WAIT_S).ids for future in futures] == alone


def test_a_leader_that_never_runs_does_not_hold_up_its_followers() -> None:
    with Engine(tiny_gpt2(), max_num_seqs=2) as engine:
        params = SamplingParams(max_new_tokens=3)
        late = Request(prompt_ids=(1, 2, 3), params=params, timeout_s=-1.0)
        first, *rest = engine.submit_together([late, *(Request(prompt_ids=(1, 2, 3), params=params) for _ in range(3))])
        with pytest.raises(DeadlinePassed):
            first.result(WAIT_S)
        assert all(len(future.result(WAIT_S).ids) == 3 for future in rest)


def test_followers_take_over_the_prompt_that_the_leader_computes() -> None:
    [prompt] = prompts(50)
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        futures = engine.submit_together(
            Request(prompt_ids=prompt, params=SamplingParams(seed=seed, max_new_tokens=5)) for seed in range(4)
        )
        together = [future.result(WAIT_S).ids for future in futures]
        reused = engine._runner.prefix_counts.num_reused_tokens
    with Engine(tiny_gpt2(), max_num_seqs=4) as engine:
        alone = [
            engine.submit(Request(prompt_ids=prompt, params=SamplingParams(seed=seed, max_new_tokens=5))).result(WAIT_S)
            for seed in range(4)
        ]
    assert together == [completion.ids for completion in alone]
    assert reused == 3 * 49


def test_a_listener_hears_every_token_and_may_end_the_reply() -> None:
    heard: list[int] = []

    def listen(token: int) -> bool:
        heard.append(token)
        return len(heard) == 5

    with Engine(tiny_gpt2()) as engine:
        completion = engine.submit(Request(prompt_ids=(1, 2), on_token=listen)).result(WAIT_S)
    assert completion.ids == tuple(heard)
    assert (len(heard), completion.finish_reason) == (5, "heard")


def test_a_listener_that_fails_ends_only_its_own_reply() -> None:
    def listen(token: int) -> bool:
        raise OSError("the terminal is gone")

    with Engine(tiny_gpt2()) as engine:
        failing, other = (engine.submit(Request(prompt_ids=(1, 2), on_token=one)) for one in (listen, None))
        with pytest.raises(GenerationFailed, match="the terminal is gone"):
            failing.result(WAIT_S)
        assert other.result(WAIT_S).ids


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_log_probability_is_the_models_own(num_beams: int) -> None:
    [prompt] = prompts(9)
    model = tiny_gpt2()
    params = SamplingParams(do_sample=False, max_new_tokens=8, num_beams=num_beams)
    with Engine(tiny_gpt2()) as engine:
        request = Request(prompt_ids=prompt, params=params, wants_log_prob=True)
        completion = engine.submit(request).result(WAIT_S)
    with torch.no_grad():
        scores = model(torch.tensor([[*prompt, *completion.ids]])).logits[0].log_softmax(-1)
    own = [scores[len(prompt) - 1 + place, token].item() for place, token in enumerate(completion.ids)]
    assert completion.mean_log_prob == pytest.approx(sum(own) / len(own), abs=1e-4)


def test_it_is_not_computed_unless_asked_for() -> None:
    with Engine(tiny_gpt2()) as engine:
        assert engine.submit(Request(prompt_ids=(1, 2))).result(WAIT_S).mean_log_prob is None


def test_a_cancelled_search_frees_its_slots() -> None:
    with Engine(tiny_gpt2(), max_num_seqs=3) as engine:
        search = engine.submit(Request(prompt_ids=(1, 2), params=SamplingParams(num_beams=3, max_new_tokens=100)))
        search.cancel()
        after = [engine.submit(Request(prompt_ids=(3,), params=SamplingParams(max_new_tokens=2))) for _ in range(3)]
        wait(after, WAIT_S)
        with pytest.raises(CancelledError):
            search.result()
    assert sorted(engine._scheduler._free_slots) == [0, 1, 2]
