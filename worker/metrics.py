"""What a worker times and counts, for Prometheus: every metric in one place. No text, no names of people or channels.

Times come with each reply; what an engine holds is read when somebody asks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import REGISTRY, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from personas.errors import SettingsError
from worker.engine.errors import EngineError
from worker.engine.loop import EngineLoop

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

QUEUE_S = Histogram("personabot_queue_seconds", "From asking the engine to the first step of a reply", buckets=SECONDS)
FIRST_TOKEN_S = Histogram(
    "personabot_first_token_seconds", "From asking the engine to a reply's first token", buckets=SECONDS
)
TOTAL_S = Histogram("personabot_reply_seconds", "From prompt to text, candidates and retries included", buckets=SECONDS)
TOKENS = Counter("personabot_tokens", "Tokens of the replies that were said, and of their prompts", ["kind"])
REPLIES = Counter("personabot_replies", "Replies by what ended them", ["finish_reason"])
FAILURES = Counter("personabot_failures", "Requests without a reply, by what went wrong", ["error"])


class Timed(Protocol):
    """What is measured of a reply."""

    @property
    def finish_reason(self) -> str: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_new_tokens(self) -> int: ...
    @property
    def queue_s(self) -> float: ...
    @property
    def first_token_s(self) -> float: ...
    @property
    def total_s(self) -> float: ...


def count_reply(reply: Timed) -> None:
    """Count and time one reply."""
    QUEUE_S.observe(reply.queue_s)
    FIRST_TOKEN_S.observe(reply.first_token_s)
    TOTAL_S.observe(reply.total_s)
    TOKENS.labels("prompt").inc(reply.num_prompt_tokens)
    TOKENS.labels("new").inc(reply.num_new_tokens)
    REPLIES.labels(str(reply.finish_reason)).inc()


def count_failure(error: EngineError) -> None:
    """Count a request that got no reply, by the class of its error."""
    FAILURES.labels(type(error).__name__).inc()


class Engines(Collector):
    """What the living engines hold at the moment, by the name of their model; engines of one name count together."""

    def __init__(self) -> None:
        self._names: weakref.WeakKeyDictionary[EngineLoop, str] = weakref.WeakKeyDictionary()

    def watch(self, engine: EngineLoop, name: str) -> None:
        """Show `engine` until it is gone."""
        self._names[engine] = name

    def collect(self) -> Iterable[Metric]:
        """Read all engines."""
        running = GaugeMetricFamily("personabot_running", "Requests that hold a slot", labels=["model"])
        waiting = GaugeMetricFamily("personabot_waiting", "Requests that wait for a slot", labels=["model"])
        prompts = CounterMetricFamily("personabot_prefix_tokens", "Tokens that joined", labels=["model"])
        reused = CounterMetricFamily(
            "personabot_prefix_reused_tokens", "Of these, tokens that the cache held already", labels=["model"]
        )
        short = CounterMetricFamily("personabot_out_of_memory", "Steps that memory was too short for", labels=["model"])
        by_name: dict[str, list[EngineLoop]] = {}
        for engine, name in list(self._names.items()):
            by_name.setdefault(name, []).append(engine)
        for name, engines in by_name.items():
            running.add_metric([name], sum(engine.num_running for engine in engines))
            waiting.add_metric([name], sum(engine.num_waiting for engine in engines))
            prompts.add_metric([name], sum(engine.prefix_counts.num_tokens for engine in engines))
            reused.add_metric([name], sum(engine.prefix_counts.num_reused_tokens for engine in engines))
            short.add_metric([name], sum(engine.num_out_of_memory for engine in engines))
        return [running, waiting, prompts, reused, short]


ENGINES = Engines()
REGISTRY.register(ENGINES)


@contextlib.contextmanager
def shown_at(port: int) -> Iterator[int]:
    """Answer Prometheus on `port` of every address until the block ends (0: a free one); yields the port."""
    try:
        server, thread = start_http_server(port)
    except OSError as error:
        raise SettingsError(f"metrics_port {port}: {error.strerror or error}. Take another, or 0 for none.") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
