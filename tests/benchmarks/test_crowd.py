"""The crowd of the retraining benchmark: who talks is answered or counted as dropped, and times fall into phases."""

from __future__ import annotations

import asyncio

from benchmarks.crowd import Crowd, Phase, Said
from personas.catalogue import load_catalogue
from tests.helpers.answering import scripted_worker
from tests.helpers.worker_process import wait_until
from worker.queue.publish import Publisher


def test_what_was_due_in_a_phase_counts_there_and_what_nobody_answered_is_dropped() -> None:
    said = [Said(10 + index, took_s=(index + 1) / 10) for index in range(20)] + [Said(30.0), Said(31.5, took_s=2.0)]
    assert Phase("training", 10, 31).summary(said) == {
        "seconds": 21, "said": 21, "dropped": 1, "p50_ms": 1050, "p95_ms": 2000, "slowest_ms": 2000,
    }  # fmt: skip
    assert Phase("after", 32, 33).summary(said) == {"seconds": 1, "said": 0, "dropped": 0}


async def test_people_talk_side_by_side_and_are_heard_to_the_end(redis_server: str) -> None:
    crowd = Crowd(redis_server, num_people=6, every_s=0.1, deadline_s=60)
    with scripted_worker(redis_server, load_catalogue(None)) as script, Publisher(redis_server) as publisher:
        crowd.arrive(publisher)
        await asyncio.to_thread(wait_until, lambda: len(script.heard) >= 40, "all have talked for a while")
        await crowd.leave()
    assert len(crowd.said) >= 40
    assert all(said.took_s is not None and said.model == "script" for said in crowd.said)
    longest = max(len(turns) for _, turns in script.heard)
    assert longest == 11, "six turns and the replies between them, then anew"


async def test_what_is_never_answered_is_dropped(redis_server: str) -> None:
    crowd = Crowd(redis_server, num_people=2, every_s=60, deadline_s=0.1)
    with Publisher(redis_server) as publisher:
        crowd.arrive(publisher)
        await asyncio.to_thread(wait_until, lambda: crowd.said, "the first has said something")
        await crowd.leave()
    assert [said.took_s for said in crowd.said] == [None]
