"""The record of retraining jobs: order, one at a time per device, fences, and what survives a worker."""

from __future__ import annotations

import pytest
import redis

from tests.helpers.worker_process import wait_until
from worker.queue.job import Order, Progress, State
from worker.queue.jobs import JobLost, Jobs


def order(name: str = "ada") -> Order:
    return Order(name, "datasets/ada.jsonl", "quick", by="discord:7", by_name="Ann", conversation="discord:42")


@pytest.fixture
def jobs(redis_client: redis.Redis) -> Jobs:
    return Jobs(redis_client, worker="one", device="here")


def queued(jobs: Jobs, name: str = "ada") -> str:
    """Submit a job and take it through its dry run."""
    job_id = jobs.submit(order(name)).id
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED, report={"dialogues": 3})
    assert jobs.confirm(job_id, "discord:7")
    return job_id


def test_a_record_says_what_was_put_in(jobs: Jobs) -> None:
    job_id = queued(jobs)
    job = jobs.claim("train")
    assert job is not None
    assert not jobs.beat(job, Progress(step=3, tokens=30, total_tokens=100, loss=2.5))
    jobs.move(job, State.JUDGING)
    jobs.set_message(job_id, "99")
    jobs.put_curve(job, b"\x89PNG\x00")
    seen = jobs.get(job_id)
    assert seen is not None
    assert (seen.state, seen.order, seen.report) == (State.JUDGING, order(), {"dialogues": 3})
    assert (seen.progress.step, seen.progress.share, seen.message_id) == (3, 0.3, "99")
    assert jobs.curve(job_id) == b"\x89PNG\x00"
    assert jobs.get("nonsense") is None


def test_jobs_are_trained_in_the_order_of_their_confirmation_and_one_at_a_time(
    redis_client: redis.Redis, jobs: Jobs
) -> None:
    first, second = queued(jobs, "first"), queued(jobs, "second")
    running = jobs.claim("train")
    assert running is not None
    assert running.id == first
    assert Jobs(redis_client, worker="two", device="here").claim("train") is None
    elsewhere = Jobs(redis_client, worker="three", device="there").claim("train")
    assert elsewhere is not None
    assert elsewhere.id == second
    third = queued(jobs, "third")
    jobs.move(running, State.REFUSED, reason="worse")
    following = jobs.claim("train")
    assert following is not None
    assert following.id == third


def test_a_dry_run_does_not_wait_for_a_training(jobs: Jobs) -> None:
    queued(jobs)
    assert jobs.claim("train")
    asked = jobs.submit(order("other"))
    checked = jobs.claim("check")
    assert checked is not None
    assert checked.id == asked.id
    assert jobs.claim("check") is None


def test_only_a_proposed_job_can_be_confirmed_and_only_once(jobs: Jobs) -> None:
    job_id = jobs.submit(order()).id
    assert not jobs.confirm(job_id, "discord:7")
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED)
    assert jobs.confirm(job_id, "discord:7")
    assert not jobs.confirm(job_id, "discord:7")
    assert not jobs.confirm("nonsense", "discord:7")


def test_a_proposal_can_be_turned_down_at_once(jobs: Jobs) -> None:
    job_id = jobs.submit(order()).id
    checked = jobs.claim("check")
    assert checked is not None
    jobs.move(checked, State.PROPOSED)
    assert jobs.cancel(job_id, "by Ann") is State.CANCELLED
    assert not jobs.confirm(job_id, "discord:7")


def test_a_proposal_that_nobody_confirms_in_time_ends_by_itself(redis_client: redis.Redis, jobs: Jobs) -> None:
    job_id = jobs.submit(order()).id
    checked = jobs.claim("check")
    assert checked is not None
    assert Jobs(redis_client, proposal_s=0).lapse() == []  # nothing is proposed yet
    jobs.move(checked, State.PROPOSED)
    assert jobs.lapse() == []
    assert Jobs(redis_client, proposal_s=0).lapse() == [job_id]
    ended = jobs.get(job_id)
    assert ended is not None
    assert (ended.state, ended.reason) == (State.CANCELLED, "after a day without a confirmation")
    assert jobs.open() == []
    assert jobs.lapse() == []


def test_a_confirmation_that_comes_too_late_ends_the_proposal_instead(redis_client: redis.Redis, jobs: Jobs) -> None:
    in_time, too_late = jobs.submit(order()).id, jobs.submit(order()).id
    while checked := jobs.claim("check"):
        jobs.move(checked, State.PROPOSED)
    assert not Jobs(redis_client, proposal_s=0).confirm(too_late, "discord:7")
    assert jobs.confirm(in_time, "discord:7")
    assert not jobs.confirm(too_late, "discord:7")
    assert Jobs(redis_client, proposal_s=0).lapse() == []
    assert [job.state for job in jobs.newest()] == [State.CANCELLED, State.QUEUED]


def test_a_job_whose_worker_is_silent_goes_to_a_worker_of_the_same_device(redis_client: redis.Redis) -> None:
    mayfly = Jobs(redis_client, worker="one", device="here", lease_s=0.01)
    job_id = queued(mayfly)
    lost = mayfly.claim("train")
    assert lost is not None
    successor = Jobs(redis_client, worker="two", device="here")
    found = []
    wait_until(lambda: found.append(successor.claim("train")) or found[-1], "the lease has lapsed")
    assert found[-1].id == job_id
    assert found[-1].num_claims == 2
    assert Jobs(redis_client, worker="three", device="there").claim("train") is None
    with pytest.raises(JobLost):
        mayfly.beat(lost)
    with pytest.raises(JobLost):
        mayfly.move(lost, State.FAILED)


def test_a_job_that_an_earlier_version_left_half_done_goes_on_under_the_devices_new_name(
    redis_client: redis.Redis,
) -> None:
    before = Jobs(redis_client, worker="one", device="place:auto", lease_s=0.01)
    job_id = queued(before)
    assert before.claim("train")
    upgraded = Jobs(redis_client, worker="two", device="place:cpu", former_device="place:auto")
    found = []
    wait_until(lambda: found.append(upgraded.claim("train")) or found[-1], "the lease has lapsed")
    assert found[-1].id == job_id
    upgraded.release(found[-1])
    again = Jobs(redis_client, worker="three", device="place:cpu").claim("train")
    assert again is not None
    assert again.id == job_id


def test_a_job_that_nobody_works_on_any_more_can_be_cancelled(redis_client: redis.Redis) -> None:
    mayfly = Jobs(redis_client, worker="one", device="here", lease_s=0.01)
    job_id = queued(mayfly)
    lost = mayfly.claim("train")
    assert lost is not None
    adapter = Jobs(redis_client)
    wait_until(lambda: adapter.cancel(job_id, "by Ann") is State.CANCELLED, "the lease has lapsed")
    assert adapter.open() == []
    with pytest.raises(JobLost):
        mayfly.beat(lost)
    assert mayfly.claim("train") is None


def test_a_released_job_is_taken_up_at_once_and_does_not_count_as_a_death(jobs: Jobs) -> None:
    queued(jobs)
    job = jobs.claim("train")
    assert job is not None
    jobs.release(job)
    again = jobs.claim("train")
    assert again is not None
    assert (again.id, again.num_claims, again.state) == (job.id, 1, State.TRAINING)


def test_what_waits_is_cancelled_at_once_and_what_runs_with_the_next_heartbeat(jobs: Jobs) -> None:
    waiting, running = queued(jobs, "first"), queued(jobs, "second")
    assert jobs.cancel(waiting, "by Ann") is State.CANCELLED
    job = jobs.claim("train")
    assert job is not None
    assert job.id == running
    assert jobs.cancel(running, "by Ann") is State.TRAINING
    assert jobs.beat(job)
    jobs.move(job, State.CANCELLED)
    assert jobs.cancel(running, "by Ann") is None
    assert jobs.open() == []
    assert [each.id for each in jobs.newest()] == [running, waiting]


def test_an_adapter_finds_again_what_it_was_showing(jobs: Jobs) -> None:
    jobs.show("discord", "a")
    jobs.show("telegram", "b")
    assert jobs.shown("discord") == {"a"}
    jobs.stop_showing("discord", "a")
    assert jobs.shown("discord") == set()
