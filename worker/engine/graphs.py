"""Steps in which every sequence has one token, recorded once for a shape and replayed as a whole (CUDA graphs).

A GPU computes a small model's operations faster than Python asks for them one by one. For shapes to recur, all rows
of the cache up to the last one in use take part, rounded up, and so is the longest sequence. Knows no requests.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
import torch
from torch import Tensor

from worker.engine.attention import GridStep
from worker.engine.cache import GRAIN_TOKENS, KVCache
from worker.engine.device_errors import is_beyond_repair, is_out_of_memory
from worker.engine.errors import first_line
from worker.engine.models import Network

log = structlog.get_logger(__name__)

# A shape is recorded when it comes for the n-th time: recording takes as long as some steps do.
MIN_USES = 16
TOLERANCE = 0.05  # of the scores' spread: how far a replay may be from what was recorded
MAX_SPARSENESS = 4  # rows that are computed for each that is in use: a row costs the reading of what it holds
# A process records one thing at a time, and nobody empties torch's cache meanwhile.
RECORDING = threading.RLock()

Outputs = tuple[Tensor, Tensor | None]


class Recorder(Protocol):
    """Runs `compute` and remembers its operations, with the addresses that they read and write."""

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        """Return where the results will be, and what does the same operations again."""


class Cell(NamedTuple):
    """A sequence's token: the cache row that it belongs to, and what the network is told of it."""

    row: int
    id: int
    position: int
    token_type: int = 0


class Shape(NamedTuple):
    """The rows that take part, and the longest sequence that one may hold."""

    num_rows: int
    num_tokens: int


class Graph:
    """One recorded step. Its inputs are ids, positions, token types and whether a row is used: (4, num_rows)."""

    def __init__(
        self, network: Network, cache: KVCache, shape: Shape, first: Tensor, *, has_types: bool, record: Recorder
    ) -> None:
        """Record the step and try it on the inputs `first`; raises `RuntimeError` if a replay differs."""
        self._inputs = first.clone()

        def compute() -> Outputs:
            # Whatever is made here lives in the recording; of what is made outside, somebody has to take care.
            ids, positions, types, is_used = self._inputs
            every = torch.arange(shape.num_rows, device=first.device)
            step = GridStep(shape.num_tokens, positions=positions, is_used=is_used.bool(), cache=cache)
            return network(ids, positions, every, step, **({"token_types": types} if has_types else {}))

        expected, _ = compute()  # what a first time allocates is no part of the recording
        with RECORDING:
            self._outputs, self._replay = record(compute)
        scores, _ = self.run(first)
        if not torch.allclose(scores, expected, rtol=0.0, atol=TOLERANCE * float(expected.std())):
            raise RuntimeError("a replay gave other scores than the step that was recorded")

    def run(self, inputs: Tensor) -> Outputs:
        """Compute the step for other inputs; the next run writes over what is returned."""
        self._inputs.copy_(inputs)
        self._replay()
        return self._outputs


class Graphs:
    """The recorded steps of one network and its cache. When the cache grows they are recorded anew."""

    def __init__(
        self,
        network: Network,
        cache: KVCache,
        *,
        device: torch.device,
        start_recorder: Callable[[], Recorder],
        has_types: bool = False,
    ) -> None:
        self._network, self._cache, self._device, self._has_types = network, cache, device, has_types
        self._start_recorder = start_recorder
        self._graphs: dict[Shape, Graph] = {}
        self._num_uses: Counter[Shape] = Counter()
        self._version: int | None = None
        self._is_off = False

    def run(self, cells: Sequence[Cell]) -> Outputs | None:
        """Return the scores (n, V) and states (n, E) after `cells`; None where their shape is not recorded."""
        if self._is_off:
            return None
        num_rows, num_tokens = (max(numbers) + 1 for numbers in zip(*((c.row, c.position) for c in cells), strict=True))
        self._cache.reserve(num_rows=num_rows, num_tokens=num_tokens)
        if self._cache.version != self._version:  # the addresses in the recordings are no longer the cache's
            self._version, self._record = self._cache.version, self._start_recorder()
            self._graphs.clear()
            self._num_uses.clear()
        shape = shape_for(num_rows, num_tokens, most=Shape(*self._cache.capacity))
        self._num_uses[shape] += 1
        if self._num_uses[shape] < MIN_USES or shape.num_rows > MAX_SPARSENESS * len(cells):
            return None
        inputs, rows = self._inputs(cells, shape)
        graph = self._graphs.get(shape) or self._recorded(shape, inputs)
        if graph is None:
            return None
        scores, states = graph.run(inputs)
        return scores[rows], None if states is None else states[rows]

    def _inputs(self, cells: Sequence[Cell], shape: Shape) -> tuple[Tensor, Tensor]:
        """What a graph of `shape` reads (4, R), and the rows of `cells` (n,): one transfer."""
        columns = torch.zeros((5, shape.num_rows), dtype=torch.long)
        rows = [cell.row for cell in cells]
        columns[:4, rows] = torch.tensor([[cell.id, cell.position, cell.token_type, 1] for cell in cells]).T
        columns[4, : len(rows)] = torch.tensor(rows)
        columns = columns.to(self._device, non_blocking=True)
        return columns[:4], columns[4, : len(rows)]

    def _recorded(self, shape: Shape, inputs: Tensor) -> Graph | None:
        try:
            graph = Graph(self._network, self._cache, shape, inputs, has_types=self._has_types, record=self._record)
        except Exception as error:
            if is_beyond_repair(error):
                raise
            log.warning("a step can't be recorded, so each operation is asked for", why=first_line(error))
            if is_out_of_memory(error):
                del self._num_uses[shape]  # perhaps later
            else:
                self._is_off = True
                self._graphs.clear()
            return None
        self._graphs[shape] = graph
        return graph


def shape_for(num_rows: int, num_tokens: int, *, most: Shape) -> Shape:
    """The smallest shape that holds so much: powers of two, in tokens those of a grain, and not above `most`."""
    num_grains = -(-num_tokens // GRAIN_TOKENS)
    return Shape(
        min(1 << (num_rows - 1).bit_length(), most.num_rows),
        min(GRAIN_TOKENS << (num_grains - 1).bit_length(), most.num_tokens),
    )


def cuda_recorder(device: torch.device) -> Recorder:
    """Return what records CUDA graphs. They share their memory, since one is replayed at a time."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(compute: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.device(device),
                # An error would leave the recording's stream in the place of this one.
                torch.cuda.stream(torch.cuda.current_stream(device)),
                # Other threads compute with other models meanwhile.
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                outputs = compute()
        except Exception:
            with contextlib.suppress(RuntimeError):  # nor would the allocator learn that the recording is over
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            raise
        return outputs, graph.replay

    return record
