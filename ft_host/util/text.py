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
    return next(iter(alike(name, names, count=1)), None)


def alike(name: Any, names: Iterable[Any], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the `count` of `names` nearest to `name`, ignoring case, the nearest first.

    `cutoff` is from 0 (anything) to 1 (the same).
    """
    known = {str(other).lower(): str(other) for other in names}
    return [known[near] for near in difflib.get_close_matches(str(name).lower(), known, n=count, cutoff=cutoff)]


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
