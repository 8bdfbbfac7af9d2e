"""The record of retraining jobs in Redis: who ordered what, who works on it, how far it is, what came of it.

Owns the order of jobs, one at a time per device, and who may write into a record: every step of a worker proves with a
fence that the job is still its own. Knows nothing of training.

A job's life: `submit` (checking) - dry run, `move` (proposed) - `confirm` (queued) - `claim` (training) - `move`
(judging, then promoted, refused, failed or cancelled). What nobody confirms within a day is cancelled. A worker that
shows no sign of life for a lease loses the job; a worker of the same data folder and device takes it up where it was
left.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final, Literal, cast

import redis

from worker.queue import job_scripts as scripts
from worker.queue.job import Job, Order, Progress, State, encode

LEASE_S: Final = 12.0
PROPOSAL_S: Final = 24 * 3600.0
LAPSED: Final = "after a day without a confirmation"
NUM_LISTED: Final = 10


class JobLost(Exception):
    """Another worker has taken the job over, or its record is gone."""


class Jobs:
    """All jobs of one Redis, as an adapter or a training worker sees them.

    `former_device` is what an earlier version called the `device`: a job that it left half-done is taken up as well.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        worker: str = "",
        device: str = "",
        former_device: str = "",
        lease_s: float = LEASE_S,
        proposal_s: float = PROPOSAL_S,
    ) -> None:
        self.redis = client
        self._worker = worker
        self._device = device
        self._former_device = former_device or device
        self._lease_ms = int(lease_s * 1000)
        self._proposal: list[int | str] = [int(proposal_s * 1000), LAPSED]
        self._submit = client.register_script(scripts.SUBMIT)
        self._claim = client.register_script(scripts.CLAIM)
        self._beat = client.register_script(scripts.BEAT)
        self._move = client.register_script(scripts.MOVE)
        self._release = client.register_script(scripts.RELEASE)
        self._confirm = client.register_script(scripts.CONFIRM)
        self._lapse = client.register_script(scripts.LAPSE)
        self._cancel = client.register_script(scripts.CANCEL)

    # --- for adapters ---

    def submit(self, order: Order) -> Job:
        """Record an order; its dry run is the first thing that happens."""
        job_id = secrets.token_hex(4)
        self._submit(args=[job_id, encode(order), repr(time.time())])
        return Job(job_id, order, State.CHECKING)

    def get(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        record = cast("dict[str, str]", self.redis.hgetall(f"job:{job_id}")) if job_id else {}
        return Job.from_record(job_id, record) if "order" in record else None

    def newest(self, limit: int = NUM_LISTED) -> list[Job]:
        """Return the newest jobs, the last one first."""
        ids = cast("list[str]", self.redis.zrange("jobs", 0, limit - 1, desc=True))
        return [job for job in map(self.get, ids) if job is not None]

    def open(self) -> list[Job]:
        """Return the jobs that are not over, in the order of the queue."""
        ids = cast("list[str]", self.redis.zrange("jobs:open", 0, -1))
        return [job for job in map(self.get, ids) if job is not None]

    def confirm(self, job_id: str, by: str) -> bool:
        """Queue a job whose dry run was shown; False if it waits for no confirmation (any more)."""
        return bool(self._confirm(args=[job_id, by, *self._proposal]))

    def cancel(self, job_id: str, reason: str) -> State | None:
        """End a job, now or with its worker's next heartbeat; return its state, None if there is nothing to end."""
        state = cast(str, self._cancel(args=[job_id, reason]))
        return State(state) if state else None

    def set_message(self, job_id: str, message_id: str) -> None:
        """Remember the message that shows the job."""
        self.redis.hset(f"job:{job_id}", "message_id", message_id)

    def shown(self, platform: str) -> set[str]:
        """Return the ids of the jobs that the platform's adapter keeps people informed of."""
        return set(cast("set[str]", self.redis.smembers(f"jobs:shown:{platform}")))

    def show(self, platform: str, job_id: str) -> None:
        """Have the platform's adapter keep people informed of a job."""
        self.redis.sadd(f"jobs:shown:{platform}", job_id)

    def stop_showing(self, platform: str, job_id: str) -> None:
        """Say that everything about the job was told."""
        self.redis.srem(f"jobs:shown:{platform}", job_id)

    def heard_until(self, platform: str, since: float) -> float:
        """Return until when the platform's people heard of models not loaded, `since` at first (s since 1970)."""
        self.redis.set(f"jobs:heard:{platform}", repr(since), nx=True)
        return float(cast(str, self.redis.get(f"jobs:heard:{platform}")))

    def set_heard_until(self, platform: str, at: float) -> None:
        """Say that they heard of what happened until `at`."""
        self.redis.set(f"jobs:heard:{platform}", repr(at))

    # --- for training workers ---

    def claim(self, kind: Literal["check", "train"]) -> Job | None:
        """Take the next job that waits, or one whose worker died; None if there is none or the device is busy."""
        job_id = self._claim(args=[kind, self._worker, self._device, self._lease_ms, self._former_device])
        return self.get(cast(str, job_id)) if job_id else None

    def beat(self, job: Job, progress: Progress | None = None) -> bool:
        """Show a sign of life; say whether somebody wants the job cancelled. Raises `JobLost`."""
        told = encode(progress) if progress else ""
        answer = int(cast(int, self._beat(args=[job.id, job.fence, self._device, self._lease_ms, told])))
        if answer < 0:
            raise JobLost(job.id)
        return answer == 1

    def move(self, job: Job, state: State, **values: Any) -> None:
        """Write a new state, and `report`, `result` or `reason` with it. Raises `JobLost`."""
        told = {name: value if isinstance(value, str) else encode(value) for name, value in values.items()}
        words = [word for pair in {"state": str(state), **told}.items() for word in pair]
        if not self._move(args=[job.id, job.fence, self._device, *words]):
            raise JobLost(job.id)

    def is_training(self) -> bool:
        """Say whether a job is trained or judged, on whatever device."""
        return any(job.state in (State.TRAINING, State.JUDGING) for job in self.open())

    def lapse(self) -> list[str]:
        """Cancel the jobs that nobody confirmed in time, and return their ids."""
        return cast("list[str]", self._lapse(args=self._proposal))

    def release(self, job: Job) -> None:
        """Let go of an unfinished job: the next worker to look goes on with it."""
        self._release(args=[job.id, job.fence, self._device])

    # --- the picture: bytes, which the other fields are not ---

    def put_curve(self, job: Job, png: bytes) -> None:
        """Keep the picture of the loss curve."""
        self.redis.set(f"job:{job.id}:curve", png.hex())

    def curve(self, job_id: str) -> bytes:
        """Return the picture of the loss curve (PNG), empty if there is none."""
        return bytes.fromhex(cast("str | None", self.redis.get(f"job:{job_id}:curve")) or "")
