"""What Prometheus reads of a worker."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from personas.conversation import Role, Turn
from personas.errors import SettingsError
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.tiny_model import tiny_checkpoint
from worker import metrics
from worker.engine.errors import DeadlinePassed
from worker.respond import start_responder

ADA = Persona(name="Ada", facts=("My name is Ada.", "I keep a secret."))
HELLO = (Turn(Role.USER, "hello, who are you?", name="Bob"),)


def read(port: int) -> tuple[str, dict[str, float]]:
    """Return the page, and its values by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return page, {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def test_replies_are_counted_and_timed_and_engines_shown(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny-for-metrics")
    with metrics.shown_at(0) as port, start_responder(Settings(model=str(model), dtype="float32")) as responder:
        _, before = read(port)
        for _ in range(2):
            reply = responder.respond(ADA, HELLO, GenerationSettings(max_new_tokens=5, seed=1))
        with pytest.raises(DeadlinePassed):
            responder.respond(ADA, HELLO, deadline=0.0)
        page, after = read(port)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("personabot_first_token_seconds_count") == 2
    assert grown("personabot_reply_seconds_count") == 2
    assert grown("personabot_tokens_total prompt") == 2 * reply.num_prompt_tokens
    assert grown("personabot_failures_total DeadlinePassed") == 1
    assert after["personabot_running tiny-for-metrics"] == after["personabot_waiting tiny-for-metrics"] == 0
    assert after["personabot_prefix_reused_tokens_total tiny-for-metrics"] == reply.num_prompt_tokens - 1
    assert not any(word in page for word in ("Ada", "Bob", "secret", "hello"))


def test_a_port_that_is_taken_is_a_mistake_in_the_settings() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"metrics_port {port}"), metrics.shown_at(port):
            pass
