"""Ranks end with the process that launched them.

torchrun's agent, or `ft-host train --num-processes`, starts the ranks of a machine and watches them. Killed with
SIGKILL it can't end them: they would train on, with nobody to see them, into a folder that a resumed run now owns. So
each rank watches its parent.
"""

from __future__ import annotations

import os
import sys
import threading
import time

LAUNCHER = "FT_HOST_LAUNCHER"  # environment: the pid of `ft-host train --num-processes`
AGENT = "TORCHELASTIC_RUN_ID"  # environment: set by torch's agent for the ranks that it starts
INTERVAL = 0.5  # seconds
EXIT_CODE = 1

_watched: list[threading.Thread] = []  # at most one


def end_with_launcher() -> None:
    """Watch the launcher of this process from now on, if it has one. To be called as early as possible: a torchrun that
    is gone before isn't noticed."""
    if AGENT not in os.environ or _watched:
        return
    known = os.environ.get(LAUNCHER)
    launcher = int(known) if known else os.getppid()
    thread = threading.Thread(target=_watch, args=(launcher,), name="ft-host launcher watch", daemon=True)
    _watched.append(thread)
    thread.start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(INTERVAL)
    print(
        f"ft-host: process {launcher}, which launched this rank, is gone; the rank ends. The checkpoints stay: resume "
        "the run",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_CODE)  # the main thread may be within a collective and answer nothing
