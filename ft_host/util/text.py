"""Hints for unknown names, and other small helpers for text. Imports nothing of the host."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def missing(file: Path) -> str:
    """Say why a file doesn't exist, with the nearest name in its folder."""
    if file.is_dir():
        return "a folder, expected a file"
    folder = file.parent
    if not folder.is_dir():
        return f"no such file; there is no folder {folder}{nearest_path(folder)}"
    return f"no such file{nearest_path(file)}"


def nearest_path(file: Path) -> str:
    """Return "; did you mean data/train.jsonl?", from the folder of a missing file, or nothing."""
    if not file.parent.is_dir():
        return ""
    guess = nearest(file.name, [entry.name for entry in file.parent.iterdir()], "{}")
    return f"; did you mean {file.parent / guess}?" if guess else ""


QUOTED = "; did you mean {!r}?"


def closest(name: Any, names: Iterable[Any]) -> str | None:
    """Return the one of `names` nearest to `name`, ignoring case; None where none is near."""
    by_lower_case = {str(other).lower(): str(other) for other in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[near[0]] if near else None


def nearest(name: Any, names: Iterable[Any], form: str = "; did you mean {}?", otherwise: str = "") -> str:
    """Return "; did you mean learning_rate?", or nothing where no name is near.

    With `otherwise` ("there are"), a list of the first ten names takes its place.
    """
    known = [str(other) for other in names]
    near = closest(name, known)
    if near is not None:
        return form.format(near)
    return f"; {otherwise}: {', '.join(sorted(known)[:10])}" if otherwise and known else ""


def now() -> str:
    """Return the time as ISO 8601 with its zone, to the second."""
    return datetime.datetime.now(datetime.UTC).astimezone().isoformat(timespec="seconds")
