"""Who is next: the sequences that wait for a slot, in an order in which nobody's crowd holds up the others."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from worker.engine.errors import EngineBusy
from worker.engine.request import Sequence


class FairQueue:
    """Turns go round between servers, within a server between its conversations, within one as they came.

    At most `max_num_waiting` wait.
    """

    def __init__(self, max_num_waiting: int) -> None:
        self._max_num_waiting = max_num_waiting
        self._servers: OrderedDict[str, OrderedDict[str, deque[Sequence]]] = OrderedDict()

    def add(self, *sequences: Sequence) -> None:
        """Put each at the end of its conversation's line, all of them or none: `EngineBusy`.

        A new server or conversation goes behind the others.
        """
        if len(self) + len(sequences) > self._max_num_waiting:
            raise EngineBusy(f"{len(self)} requests are waiting already; try again later")
        for sequence in sequences:
            server, conversation = sequence.request.group
            lines = self._servers.setdefault(server, OrderedDict())
            lines.setdefault(conversation, deque()).append(sequence)

    def next(self) -> Sequence | None:
        """Return whose turn it is, without taking it out; a line whose first one is not ready is passed over."""
        firsts = (line[0] for lines in self._servers.values() for line in lines.values())
        return next((sequence for sequence in firsts if sequence.is_ready), None)

    def take(self, sequence: Sequence) -> None:
        """Take out whose turn it was: its server and its conversation go behind the others."""
        server, conversation = sequence.request.group
        self._servers.move_to_end(server)
        self._servers[server].move_to_end(conversation)
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out `sequence`, which need not be the first of its line."""
        server, conversation = sequence.request.group
        lines = self._servers[server]
        lines[conversation].remove(sequence)
        if not lines[conversation]:
            del lines[conversation]
        if not lines:
            del self._servers[server]

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for lines in self._servers.values() for line in lines.values() for sequence in line)

    def __len__(self) -> int:
        return sum(len(line) for lines in self._servers.values() for line in lines.values())
