"""A process that calls reward functions, as its parent sees it; `worker` is what it runs."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from multiprocessing.connection import Pipe
from typing import Any

INSIDE = "FT_HOST_REWARD_WORKER"  # an environment variable that is set in workers
# It gets the parent's path instead of one of its own: a module is found, or shadowed, as it is in the parent.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ft_host.rewards.worker import main; main({})"


class Worker:
    """A fresh interpreter: not forked off a process with threads and a GPU, and without the user's script in it.

    `number`: of those that its pool has started. `loaded`: the rewards that it has been asked for.
    """

    def __init__(self, number: int, folder: str):
        self.number = number
        self.loaded: set[str] = set()
        self.connection, theirs = Pipe()
        descriptor = theirs.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-c", START.format(descriptor), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # standard output is the run's: what functions print goes to standard error
            pass_fds=(descriptor,),
            start_new_session=True,  # Ctrl-C is for the run to answer, and a kill reaches what functions have started
            cwd=folder,
            # sets and hashes of texts are the same in each worker, and in a resumed run
            env={"PYTHONHASHSEED": "0"} | os.environ | {INSIDE: "1"},
        )
        theirs.close()

    def send(self, *request: Any) -> None:
        """Where it has died, `receive` says so."""
        message = pickle.dumps(request)
        try:
            self.connection.send_bytes(message)
        except OSError:
            return

    def receive(self) -> tuple[Any, ...]:
        """Its next message, waited for; ("died", how) where it ended instead."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return ("died", self._ended())

    def end(self) -> None:
        """Kill it, with all that it has started, and wait until it is gone."""
        self.connection.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it is gone and has left nobody; macOS says that it may not
            pass
        self.process.wait()

    def _ended(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
