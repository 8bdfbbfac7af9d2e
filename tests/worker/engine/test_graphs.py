"""Steps that are recorded and replayed. A tape stands for the CUDA graph: it repeats operations on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from structlog.testing import capture_logs
from transformers import PreTrainedModel

from tests.helpers.tape import record
from tests.helpers.tiny_families import FAMILIES, WINDOW, prompts, tiny_gpt2
from tests.worker.engine.test_runner import advance, running, tiny_qwen3
from worker.engine.engine import Engine
from worker.engine.graphs import MIN_USES, Outputs, Recorder, Shape, shape_for
from worker.engine.models import network_for
from worker.engine.models.general import General
from worker.engine.request import Request, SamplingParams
from worker.engine.request import Sequence as Running
from worker.engine.runner import RaggedRunner, Runner, make_runner

NUM_ROWS = 6


class Recordings:
    """A recorder that counts."""

    def __init__(self) -> None:
        self.num_started = self.num_recorded = self.num_replays = 0

    def start(self) -> Recorder:
        self.num_started += 1
        return self

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        self.num_recorded += 1
        outputs, replay = record(compute)

        def counted() -> None:
            self.num_replays += 1
            replay()

        return outputs, counted


def recording_runner(
    model: PreTrainedModel,
    start: Callable[[], Recorder],
    token_types: Callable[[Sequence[int]], list[int]] | None = None,
) -> RaggedRunner:
    network = network_for(model, dtype=model.dtype) or General(model)
    return RaggedRunner(
        network,
        device=model.device,
        max_num_seqs=NUM_ROWS,
        window=WINDOW,
        token_types=token_types,
        start_recorder=start,
    )


def started(runner: Runner, *lengths: int) -> list[Running]:
    """Sequences whose prompts are computed but for the last token."""
    sequences = [running(slot, ids) for slot, ids in enumerate(prompts(*lengths))]
    for sequence in sequences:
        advance(runner, (sequence, len(sequence.ids) - 1))
    return sequences


def say(runner: Runner, sequences: Sequence[Running], num_tokens: int) -> list[torch.Tensor]:
    """Compute tokens one by one for all, the same whatever the scores are; return the scores."""
    rows = []
    for number in range(num_tokens):
        rows.append(advance(runner, *((sequence, 1) for sequence in sequences)))
        for sequence in sequences:
            sequence.ids.append((31 * number + 7 * len(sequence.ids)) % 300)
    return rows


@pytest.mark.parametrize("make", [*FAMILIES.values(), tiny_qwen3], ids=lambda make: make.__name__)
def test_a_replayed_step_scores_as_one_that_is_computed(make: Callable[[], PreTrainedModel]) -> None:
    recordings = Recordings()
    replaying, plain = recording_runner(make(), recordings.start), make_runner(make(), max_num_seqs=6, window=WINDOW)
    scores = []
    for runner in (replaying, plain):
        first, second, third, fourth = started(runner, 5, 30, 12, 9)
        rows = say(runner, [first, second, third, fourth], MIN_USES + 2)  # past 32 tokens, not yet past 64
        rows += say(runner, [fourth, second], 3)  # rows between them rest
        fifth = running(4, (1, 2, 3))
        advance(runner, (fifth, 2), (third, 1))  # a prompt between the replays
        third.ids.append(8)
        rows += say(runner, [third, fifth, first], 20)
        rows += say(runner, [second], 2)
        scores.append(rows)
    for replayed, computed in zip(*scores, strict=True):
        torch.testing.assert_close(replayed, computed, atol=1e-5, rtol=1e-5)
    assert recordings.num_replays > 10


def test_token_types_reach_a_replayed_step() -> None:
    def types(ids: Sequence[int]) -> list[int]:
        return [number % 7 for number, _ in enumerate(ids)]

    recordings = Recordings()
    model = tiny_gpt2()
    replaying = recording_runner(model, recordings.start, types)
    plain = make_runner(model, max_num_seqs=6, window=WINDOW, token_types=types)
    replayed, computed = (say(runner, started(runner, 5, 9), MIN_USES + 3) for runner in (replaying, plain))
    torch.testing.assert_close(torch.stack(replayed), torch.stack(computed), atol=1e-5, rtol=1e-5)
    assert recordings.num_replays > 3


def test_a_row_that_takes_no_part_keeps_what_it_holds() -> None:
    runner = recording_runner(tiny_gpt2(), Recordings().start)
    sequences = started(runner, 9, 9, 9)
    before = [part.clone() for part in runner._cache.save(1, WINDOW // 2)]
    say(runner, [sequences[0], sequences[2]], MIN_USES + 3)
    after = runner._cache.save(1, WINDOW // 2)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_shape_is_recorded_when_it_comes_again_and_again() -> None:
    recordings = Recordings()
    runner = recording_runner(tiny_gpt2(), recordings.start)
    [sequence] = started(runner, 5)
    say(runner, [sequence], MIN_USES - 1)
    assert recordings.num_recorded == 0
    say(runner, [sequence], 2)
    assert (recordings.num_recorded, recordings.num_replays) == (1, 3)  # one replay was to try it


def test_steps_are_recorded_anew_when_the_cache_has_grown() -> None:
    recordings = Recordings()
    runner = recording_runner(tiny_gpt2(), recordings.start)
    [sequence] = started(runner, 5)
    say(runner, [sequence], MIN_USES + 1)
    other = running(1, prompts(70)[0])
    advance(runner, (other, 70))
    say(runner, [sequence], MIN_USES)
    assert (recordings.num_started, recordings.num_recorded) == (2, 2)


def refuses(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors …")


def forgets(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    scores, states = compute()
    return (torch.zeros_like(scores), states), lambda: None


@pytest.mark.parametrize(
    ("recorder", "why"),
    [(refuses, "operation not permitted when stream is capturing"), (forgets, "a replay gave other scores")],
)
def test_without_a_good_recording_each_step_is_computed_as_before(recorder: Recorder, why: str) -> None:
    with capture_logs() as logs:
        runner = recording_runner(tiny_gpt2(), lambda: recorder)
        rows = say(runner, started(runner, 5, 9), MIN_USES + 5)
    plain = make_runner(tiny_gpt2(), max_num_seqs=6, window=WINDOW)
    torch.testing.assert_close(rows, say(plain, started(plain, 5, 9), MIN_USES + 5), atol=1e-5, rtol=1e-5)
    [line] = logs
    assert line["why"].startswith(why)


def test_shapes_are_rounded_up_so_that_they_recur() -> None:
    most = Shape(24, 320)
    assert shape_for(1, 1, most=most) == (1, 64)
    assert shape_for(5, 64, most=most) == (8, 64)
    assert shape_for(5, 65, most=most) == (8, 128)
    assert shape_for(17, 300, most=most) == most


def test_one_sequence_in_a_high_row_is_computed_without_the_rows_below_it() -> None:
    recordings = Recordings()
    runner = recording_runner(tiny_gpt2(), recordings.start)
    *_, last = started(runner, 5, 5, 5, 5, 5)
    say(runner, [last], MIN_USES + 2)
    assert recordings.num_recorded == 0


def test_what_memory_is_too_short_for_is_tried_again_later() -> None:
    recordings, is_short = Recordings(), [True]

    def start() -> Recorder:
        def record_or_fail(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
            if is_short[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recordings(compute)

        return record_or_fail

    runner = recording_runner(tiny_gpt2(), start)
    [sequence] = started(runner, 5)
    say(runner, [sequence], MIN_USES + 1)
    is_short[0] = False
    say(runner, [sequence], MIN_USES)
    assert recordings.num_recorded == 1


def greedy_replies(model: PreTrainedModel, *, cuda_graphs: bool) -> list[tuple[int, ...]]:
    params = SamplingParams(do_sample=False, max_new_tokens=60)
    with Engine(model, max_num_seqs=4, cuda_graphs=cuda_graphs) as engine:
        futures = [engine.submit(Request(prompt_ids=ids, params=params)) for ids in prompts(5, 20, 33)]
        return [future.result().ids for future in futures]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_replies_are_the_same_with_and_without_graphs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_replays = [0]

    def counted(graph: torch.cuda.CUDAGraph, plain: Callable[[torch.cuda.CUDAGraph], None]) -> None:
        num_replays[0] += 1
        plain(graph)

    plain = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: counted(graph, plain))
    model = FAMILIES[family]().to("cuda")
    with capture_logs() as logs:
        expected = greedy_replies(model, cuda_graphs=False)
        with ThreadPoolExecutor(2) as together:  # two engines record side by side
            found = list(together.map(lambda _: greedy_replies(model, cuda_graphs=True), range(2)))
    assert found == [expected, expected]
    assert num_replays[0] > 60
    assert logs == []
