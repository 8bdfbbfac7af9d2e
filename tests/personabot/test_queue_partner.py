"""The terminal behind the queue, with a real model: a reply is seen while it comes, and comes whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from personabot.queue_partner import CONVERSATION, QueuePartner
from personas.catalogue import load_catalogue
from personas.conversation import Turn
from personas.persona import GenerationSettings, Persona
from personas.settings import Settings
from tests.helpers.answering import answering_worker
from tests.helpers.worker_process import wait_until
from worker.queue import keys
from worker.queue.reply import Reply, Tell
from worker.respond import Responder, start_responder

CATALOGUE = load_catalogue(None)
ADA = CATALOGUE.get(CATALOGUE.names()[0])
SETTINGS = GenerationSettings(max_new_tokens=12, min_new_tokens=12, seed=3)


@dataclass
class Watched:
    """A model whose replies are not complete before the person has seen all that came."""

    responder: Responder
    until_seen: Callable[[str], None] = lambda text: None
    is_watched: list[bool] = field(default_factory=list)

    def respond(
        self,
        persona: Persona,
        turns: Sequence[Turn],
        settings: GenerationSettings,
        stream: Tell | None = None,
        **options: Any,
    ) -> Reply:
        reply = self.responder.respond(persona, turns, settings, stream=stream, **options)
        self.is_watched.append(stream is not None)
        if stream:
            self.until_seen(reply.text)
        return reply


def test_a_reply_is_seen_piece_by_piece_before_it_is_complete(
    redis_server: str, redis_client: redis.Redis, tiny_model: Path
) -> None:
    pieces: list[str] = []
    with (
        start_responder(Settings(model=str(tiny_model), dtype="float32")) as responder,
        QueuePartner(redis_server, CATALOGUE, default_persona=ADA, deadline_s=60.0) as partner,
    ):
        channel = keys.pieces_channel(CONVERSATION)
        wait_until(lambda: redis_client.pubsub_numsub(channel)[0][1], "the terminal listens")
        partner.tune(SETTINGS)

        def until_seen(text: str) -> None:
            wait_until(lambda: "".join(pieces) == text, "all pieces are seen")

        speaker = Watched(responder, until_seen)
        with answering_worker(redis_server, speaker, CATALOGUE):
            reply = partner.say("hello there", pieces.append)
            assert "".join(pieces) == reply.text
            assert len(pieces) > 1
            pieces.clear()
            again = partner.regenerate(pieces.append)
            assert again is not None
            assert "".join(pieces) == again.text != reply.text
            pieces.clear()
            partner.say("and without watching?")
            assert (pieces, speaker.is_watched) == ([], [True, True, False])
