"""A rollout process as the trainer holds it: started by exec, written to and read by threads, ended with all its
children.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

# The process uses the trainer's sys.path, so that it finds the same modules.
# A signal asks it for the stacks of its threads, from the beginning on.
START = (
    "import faulthandler, json, signal, sys; faulthandler.register(signal.SIGUSR1, all_threads=True); "
    "sys.path[:] = json.loads(sys.argv[1]); from ft_host.scheduling.process import main; main({})"
)
# Of the launcher of the trainer's ranks: this process is none of them.
RANKS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "FT_HOST_LAUNCHER",
)
LINES = 30  # of the log, that a message quotes
TAIL = 1 << 16  # bytes of it that are read for them: what functions print may be long
STACKS = 1.0  # seconds to write them
GOODBYE = 5.0  # seconds to end by itself
LISTEN = 1.0  # seconds; silence is counted in these, of time in which the trainer ran


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a process counts as hung, and how often one is started anew before a prompt has been completed.

    `silence`: seconds without a sign of life, which it gives each second. `stuck`: seconds in which its main thread
    gets no further, or no running request gets a token. `answer`: in which a question is answered.
    """

    silence: float
    stuck: float
    answer: float
    restarts: int
    pause: float = 1.0  # seconds before the first restart; doubled each time
    longest: float = 30.0


class Child:
    """`heard(message)` is called in a thread for each message, and with ("gone",) where the process closed the pipe."""

    def __init__(self, log: Path, environment: dict[str, str], heard: Callable[[tuple[Any, ...]], None]):
        self.log, self.heard = log, heard
        self.silent = 0.0  # seconds since the last message
        self.ended = False
        self.started = time.monotonic()
        self.connection, theirs = Pipe()
        self.beginning = log.stat().st_size if log.exists() else 0
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in RANKS and not name.startswith(("TORCHELASTIC_", "ACCELERATE_"))
        }
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-P", "-c", START.format(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # only the trainer handles Ctrl-C, and a kill ends all that it has started
                # hashes of strings are the same in each such process, and in a resumed run
                env={"PYTHONHASHSEED": "0"} | kept | environment,
            )
        theirs.close()
        self.out: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._write, name="to the rollout process", daemon=True).start()
        self.reader = threading.Thread(target=self._read, name="from the rollout process", daemon=True)
        self.reader.start()

    def send(self, *message: Any) -> None:
        """Send a message, without waiting for a process that doesn't read. Raises what pickling raises."""
        self.out.put(pickle.dumps(message))

    def end(self, *, politely: bool = False) -> None:
        """Kill the process and everything that it has started, and wait for it. `politely`: it may end by itself."""
        if self.ended:
            return
        self.ended = True
        if politely:
            self.send("stop")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GOODBYE)
        self.out.put(None)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS raises PermissionError
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(GOODBYE)

    def how_ended(self) -> str:
        try:
            code = self.process.wait(GOODBYE)
        except subprocess.TimeoutExpired:
            return "closed the connection"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def write_stacks(self) -> None:
        """Let the process write the stacks of its threads into the log. They come even where the GIL is held."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(STACKS)

    def last_lines(self) -> str:
        """Return the last lines that this process has written."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self.beginning, size - TAIL))
                lines = file.read(TAIL).decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in lines[-LINES:])

    # ------------------------------------------------------------ threads

    def _write(self) -> None:
        while (data := self.out.get()) is not None:
            try:
                self.connection.send_bytes(data)
            except OSError:  # the reader says so
                return

    def _read(self) -> None:
        try:
            while True:
                if not self.connection.poll(LISTEN):
                    self.silent += LISTEN
                    continue
                self.silent = 0.0
                self.heard(pickle.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            self.heard(("gone",))
        finally:
            self.connection.close()
