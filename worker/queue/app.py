"""The Celery application: what every process that sends or runs tasks agrees on.

Owns Celery's settings and the training's task. Knows nothing of what a task does. Tasks of the chat are written by the
mailbox's scripts (see `task`), and only read by Celery.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Celery
from kombu.transport.redis import Channel

from personas.settings import load_settings
from worker.queue.connection import CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S, broker_url
from worker.queue.keys import CHAT_QUEUE
from worker.queue.server import redis_url

TRAINING_QUEUE: Final = "training"
LOOK_TASK: Final = "worker.training.look"


def num_threads(max_num_seqs: int) -> int:
    """Return how many task threads keep an engine of that many sequences busy: each waits for one reply."""
    return 2 * max_num_seqs


def _config(url: str | None) -> dict[str, Any]:
    if url is None:  # Celery's own command: nobody has read the settings yet
        settings = load_settings()
        url = redis_url(settings)
        concurrency = num_threads(settings.max_num_seqs)
    else:
        concurrency = None
    return {
        "broker_url": broker_url(url),
        "worker_pool": "threads",
        "worker_concurrency": concurrency,
        "imports": ["worker.tasks", "worker.process"],
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_default_queue": CHAT_QUEUE,
        "task_routes": {"worker.training.*": {"queue": TRAINING_QUEUE}},
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            # Who took which task is kept in the worker's memory only: for a worker that dies the claims' leases
            # answer, long before kombu's record in Redis would, which costs more than the rest of a task's way.
            "ack_emulation": False,
            "priority_steps": [0],  # one list for BRPOP to look at in place of four: no task is urgent beside others
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
        },
    }


def make_app(url: str | None = None) -> Celery:
    """Return an application for `url`; without one the settings are asked when the address is first needed."""
    app = Celery("personabot", set_as_current=False)
    app.add_defaults(lambda: _config(url))
    return app


def send_look_task(app: Celery) -> None:
    """Tell a training worker that there is something to do; if this gets lost, it finds out by itself in seconds."""
    app.send_task(LOOK_TASK, queue=TRAINING_QUEUE, ignore_result=True, retry=False)


# Nor is a task put back where its connection is lost: its reply goes on, and what was not taken is swept. (In an outage
# kombu could not put anything back either, and would dump the tasks into a file and say that they are lost.)
Channel.do_restore = False
app = make_app()
