"""The phases of the retraining benchmark: what was due in one counts there, and a job is followed to its end."""

from __future__ import annotations

import pytest
import redis

from benchmarks.crowd import Said
from benchmarks.phases import Course, JobEnded, Phase
from worker.queue.job import Job, Order, State
from worker.queue.jobs import Jobs
from worker.queue.loaded import LoadedState, RedisBoard


@pytest.fixture
def jobs(redis_client: redis.Redis) -> Jobs:
    return Jobs(redis_client, worker="one", device="here")


def in_training(jobs: Jobs) -> Job:
    job_id = jobs.submit(Order("ada", "datasets/ada.jsonl", "quick")).id
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED)
    assert jobs.confirm(job_id, "ann")
    job = jobs.claim("train")
    assert job is not None
    return job


def test_what_was_due_in_a_phase_counts_there_and_what_nobody_answered_is_dropped() -> None:
    said = [Said(10 + index, took_s=(index + 1) / 10) for index in range(20)] + [Said(30.0), Said(31.5, took_s=2.0)]
    assert Phase("training", 10, 31).summary(said) == {
        "seconds": 21, "said": 21, "dropped": 1, "p50_ms": 1050, "p95_ms": 2000, "slowest_ms": 2000,
    }  # fmt: skip
    assert Phase("after", 32, 33).summary(said) == {"seconds": 1, "said": 0, "dropped": 0}


async def test_a_job_is_followed_until_every_worker_answers_with_its_result(
    redis_client: redis.Redis, jobs: Jobs
) -> None:
    job, course = in_training(jobs), Course()
    course.begin("before")
    jobs.move(job, State.JUDGING)
    jobs.move(job, State.PROMOTED, result={"digest": "abc"})
    RedisBoard(redis_client, "one").show([LoadedState("ada", "abc", "ada@0001", ("",), 0.0, 1)])
    followed = await course.follow(jobs, job.id)
    course.begin("leaving")
    assert followed.result["digest"] == "abc"
    assert [phase.name for phase in course.phases] == ["before", "training", "judging and swap", "after"]
    assert all(one.ends == two.begins for one, two in zip(course.phases, course.phases[1:], strict=False))


async def test_a_job_that_is_refused_ends_the_following_with_the_reason(jobs: Jobs) -> None:
    job = in_training(jobs)
    jobs.move(job, State.REFUSED, reason="worse by a third")
    with pytest.raises(JobEnded, match="refused: worse by a third"):
        await Course().follow(jobs, job.id)
