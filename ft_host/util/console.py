"""Messages to the user during a run: lines between progress bars, plain lines, JSON lines for programs, or nothing."""

from __future__ import annotations

import json
import sys
from typing import Any


def mode(progress: str) -> str:
    """Resolve `auto`."""
    if progress != "auto":
        return progress
    return "bar" if sys.stderr.isatty() else "lines"


def tell(text: str, level: str, progress: str) -> None:
    """Print a sentence for the user in the format that `progress` sets."""
    how = mode(progress)
    if how == "json":
        print(json.dumps({"kind": "event", "level": level, "text": text}, ensure_ascii=False), flush=True)
    elif how == "bar":
        from tqdm import tqdm

        tqdm.write(text if level == "info" else f"{level.capitalize()}: {text}", file=sys.stderr)
    elif how == "lines" or level != "info":
        print(text if level == "info" else f"{level.capitalize()}: {text}", file=sys.stderr, flush=True)


def tell_finding(line: str, finding: dict[str, Any], level: str, progress: str) -> None:
    """Print a finding of a rule: one line for people, the whole finding for programs."""
    if mode(progress) == "json":
        print(json.dumps({"kind": "finding", **finding}, ensure_ascii=False), flush=True)
    elif mode(progress) == "bar":
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    elif mode(progress) == "lines" or level != "info":
        print(line, file=sys.stderr, flush=True)
