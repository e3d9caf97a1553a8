"""The parent's side of a process that calls reward functions; `worker` is the other side."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Pipe
from typing import Any

LARGE = 1 << 15  # bytes of a request; smaller ones fit into the pipe
INSIDE = "FT_HOST_REWARD_WORKER"  # this environment variable is set in workers
# The worker uses the parent's sys.path, so that it finds the same modules as the parent.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ft_host.rewards.worker import main; main({})"


class Worker:
    """A fresh interpreter: not forked from a process with threads and a GPU, and without the user's script in it.

    `number`: counts the processes that the pool has started. `loaded`: the rewards that it was asked for.
    """

    def __init__(self, number: int, folder: str):
        self.number = number
        self.loaded: set[str] = set()
        self.sending: threading.Thread | None = None  # of the last large request
        self.connection, theirs = Pipe()
        descriptor = theirs.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-c", START.format(descriptor), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # standard output belongs to the run: functions print to standard error
            pass_fds=(descriptor,),
            start_new_session=True,  # only the run handles Ctrl-C, and a kill also ends what functions have started
            cwd=folder,
            # hashes of strings are the same in each worker, and in a resumed run
            env={"PYTHONHASHSEED": "0"} | os.environ | {INSIDE: "1"},
        )
        theirs.close()

    def send(self, *request: Any) -> None:
        """Send a request, a large one in a thread: a process that doesn't read holds up nobody. If it has died,
        `receive` says so."""
        message = pickle.dumps(request)
        if len(message) < LARGE:
            self._send(message)
            return
        self.sending = threading.Thread(target=self._send, args=(message,), daemon=True)
        self.sending.start()

    def _send(self, message: bytes) -> None:
        try:
            self.connection.send_bytes(message)
        except OSError:
            return

    def receive(self) -> tuple[Any, ...]:
        """Wait for the next message and return it; ("died", how) where the process has ended."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return ("died", self.how_ended())

    def end(self) -> None:
        """Kill the process and everything that it started, and wait for it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # the group is gone; macOS raises PermissionError
            pass
        self.process.wait()
        if self.sending is not None:
            self.sending.join()
        self.connection.close()

    def how_ended(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
