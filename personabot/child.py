"""A command of ours as a watched child: `python -m personabot.child worker …`.

Standard input is a pipe that the parent holds. When it closes, the parent is gone, killed perhaps, and we end as well:
an orphaned adapter would keep answering beside the next one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from personabot.cli import main


def _end_with_the_parent() -> None:
    # Not sys.stdin.buffer: a daemon thread inside its lock would abort the interpreter's shutdown.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, name="parent-watch", daemon=True).start()
    main()
    sys.exit(0)
