"""The process of the queue `training`: Celery brings the word that there is something to do, the foreman does it.

    personabot worker --queues training                    (started by `personabot up` where there are administrators)

A task is acknowledged at once, since jobs have a record of their own: what Celery loses, the foreman finds by itself.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from typing import Any

from celery import signals
from celery.platforms import SecurityWarning

from personas.logs import configure_logging
from personas.settings import Settings
from trainer.retraining.jobs import Foreman
from worker.queue.app import LOOK_TASK, TRAINING_QUEUE, make_app
from worker.queue.server import running_server


def run(settings: Settings) -> None:
    """Be a training worker until SIGTERM or Ctrl-C; ends with SystemExit."""
    configure_logging(settings, "training")

    def keep_logging(**_: Any) -> None:
        """Celery leaves logging alone while somebody listens to this signal."""

    signals.setup_logging.connect(keep_logging)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # as in `worker.process`: only JSON is accepted
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # until Celery takes it over
    with running_server(settings) as url, Foreman(settings, url) as foreman:
        app = make_app(url)
        app.conf.update(imports=(), task_acks_late=False)
        app.task(name=LOOK_TASK, ignore_result=True)(foreman.wake)
        worker = app.Worker(
            hostname=f"training@{socket.gethostname()}-{os.getpid()}",
            queues=TRAINING_QUEUE,
            pool="threads",
            concurrency=1,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            redirect_stdouts=False,
        )
        worker.start()
    raise SystemExit(worker.exitcode or 0)
