"""What is printed while a check runs, by libraries, plugins and runs, goes to a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def captured(file: Path) -> Iterator[None]:
    """Append what this process, its children and its extensions print to `file`."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ours = [(number, os.dup(number)) for number in (1, 2)]
    with file.open("a", encoding="utf-8") as out:
        try:
            for number, _ in ours:
                os.dup2(out.fileno(), number)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                yield
        finally:
            for stream in (sys.stdout, sys.stderr, out):  # of those who kept the streams from before
                stream.flush()
            for number, copy in ours:
                os.dup2(copy, number)
                os.close(copy)
