"""Messages to the user during a run: lines between progress bars, plain lines, JSON lines for programs, or nothing."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from ft_host.util.jsonl import json_text, visible


def mode(progress: str) -> str:
    """Resolve `auto`."""
    if progress != "auto":
        return progress
    return "bar" if sys.stderr.isatty() else "lines"


def show(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print a text that may hold anything, such as a name or a message from a run's folder. The terminal acts on none
    of its characters."""
    print(visible(text), file=sys.stdout if file is None else file, end=end, flush=True)


def tell(text: str, level: str, progress: str) -> None:
    """Print a sentence for the user in the format that `progress` sets."""
    how = mode(progress)
    if how == "json":
        print(json_text({"kind": "event", "level": level, "text": text}), flush=True)
    elif how == "bar":
        from tqdm import tqdm

        tqdm.write(visible(text if level == "info" else f"{level.capitalize()}: {text}"), file=sys.stderr)
    elif how == "lines" or level != "info":
        show(text if level == "info" else f"{level.capitalize()}: {text}", sys.stderr)


def tell_finding(line: str, finding: dict[str, Any], level: str, progress: str) -> None:
    """Print a finding of a rule: one line for people, the whole finding for programs."""
    if mode(progress) == "json":
        print(json_text({"kind": "finding", **finding}), flush=True)
    elif mode(progress) == "bar":
        from tqdm import tqdm

        tqdm.write(visible(line), file=sys.stderr)
    elif mode(progress) == "lines" or level != "info":
        show(line, sys.stderr)
