"""The Celery application: what every process that sends or runs tasks agrees on.

Owns names of tasks and queues, and Celery's settings. Knows nothing of what a task does.
"""

from __future__ import annotations

from typing import Any, Final

from celery import Celery

from personas.conversation import Conversation
from personas.settings import load_settings
from worker.queue.connection import CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S, broker_url
from worker.queue.keys import CHAT_QUEUE
from worker.queue.server import redis_url

TRAINING_QUEUE: Final = "training"
REPLY_TASK: Final = "worker.tasks.reply"
LOOK_TASK: Final = "worker.training.look"
# Longer than a task holds on to a conversation (`tasks.MAX_TASK_S`) plus one reply: an unacknowledged task that is
# older runs again. It then finds its fence stale; the claim's lease is what answers for a dead worker.
VISIBILITY_TIMEOUT_S: Final = 120


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
        "task_routes": {REPLY_TASK: {"queue": CHAT_QUEUE}, "worker.training.*": {"queue": TRAINING_QUEUE}},
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            # Together: look for lost tasks every 2 s (kombu's defaults make it 100 s).
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
        },
    }


def make_app(url: str | None = None) -> Celery:
    """Return an application for `url`; without one the settings are asked when the address is first needed."""
    app = Celery("personabot", set_as_current=False)
    app.add_defaults(lambda: _config(url))
    return app


def send_reply_task(app: Celery, conversation: Conversation, fence: int) -> None:
    """Send the one task for a claim, with a short retry: what is lost here, the sweep sends again."""
    app.send_task(
        REPLY_TASK,
        args=[str(conversation), fence],
        queue=CHAT_QUEUE,
        ignore_result=True,
        retry=True,
        retry_policy={"max_retries": 1, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2},
    )


def send_look_task(app: Celery) -> None:
    """Tell a training worker that there is something to do; if this gets lost, it finds out by itself in seconds."""
    app.send_task(LOOK_TASK, queue=TRAINING_QUEUE, ignore_result=True, retry=False)


app = make_app()
