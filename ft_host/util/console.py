"""What the user is told while a run goes on: a bar's lines, plain lines, JSON lines for programs, or nothing."""

from __future__ import annotations

import json
import sys
from typing import Any


def mode(progress: str) -> str:
    """`auto` made concrete."""
    if progress != "auto":
        return progress
    return "bar" if sys.stderr.isatty() else "lines"


def tell(text: str, level: str, progress: str) -> None:
    """A sentence for the user, in the manner that `progress` asks for."""
    how = mode(progress)
    if how == "json":
        print(json.dumps({"kind": "event", "level": level, "text": text}, ensure_ascii=False), flush=True)
    elif how == "bar":
        from tqdm import tqdm

        tqdm.write(text if level == "info" else f"{level.capitalize()}: {text}", file=sys.stderr)
    elif how == "lines" or level != "info":
        print(text if level == "info" else f"{level.capitalize()}: {text}", file=sys.stderr, flush=True)


def tell_finding(line: str, finding: dict[str, Any], level: str, progress: str) -> None:
    """What a rule has found: a line for people, all of it for programs."""
    if mode(progress) == "json":
        print(json.dumps({"kind": "finding", **finding}, ensure_ascii=False), flush=True)
    elif mode(progress) == "bar":
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    elif mode(progress) == "lines" or level != "info":
        print(line, file=sys.stderr, flush=True)
