"""Runs a command for as long as the parent process lives, then ends it and everything that it started.

    python guard.py COMMAND ...

A separate program without imports of this package: a trainer that is killed can't clean up, and vLLM has several
processes. Ends with the command's exit code.
"""

import os
import signal
import subprocess
import sys
import time

GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def main() -> int:
    parent = os.getppid()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which saves first and then ends us
    child = subprocess.Popen(sys.argv[1:], start_new_session=True)
    while child.poll() is None and not stopping and os.getppid() == parent:
        time.sleep(0.2)
    end(child)
    return child.returncode if not stopping else 0


def end(child: subprocess.Popen) -> None:
    """End the command's session: with SIGTERM first, since vLLM must free memory shared with its workers."""
    deadline = time.monotonic() + GRACE
    ask(child.pid, signal.SIGTERM)
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.1)
    ask(child.pid, signal.SIGKILL)
    child.wait()


def alive(child: subprocess.Popen) -> bool:
    child.poll()
    return ask(child.pid, 0)


def ask(group: int, number: int) -> bool:
    """Send a signal to a process group; False where it has no process left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
