"""Hints for unknown names, and other small helpers for text. Imports nothing of the host."""

from __future__ import annotations

import datetime
import difflib
import errno
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def missing(file: Path) -> str:
    """Say why a file doesn't exist or is none, with the nearest name in its folder."""
    special = no_file(file)
    if special is not None:
        return special
    if file.is_dir():
        return "a folder, expected a file"
    folder = file.parent
    if not folder.is_dir():
        return f"no such file; there is no folder {folder}{nearest_path(folder)}"
    return f"no such file{nearest_path(file)}"


# How a file begins that Git LFS has put in the place of a large one, and what that means.
LFS = b"version https://git-lfs"
POINTER = "a Git LFS pointer, not the file itself: it wasn't downloaded; `git lfs pull` gets it"

KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO), expected a file: a run reads its data more than once",
    stat.S_IFSOCK: "a socket, expected a file",
    stat.S_IFCHR: "a device, expected a file",
    stat.S_IFBLK: "a device, expected a file",
}


def no_file(path: Path) -> str | None:
    """Say why what has this name can't be read as a file or folder: a link that leads nowhere, a pipe, a device. None
    for a file, a folder, and a name that nothing has."""
    try:
        return KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except FileNotFoundError:
        return f"a symbolic link to {path.readlink()}, which isn't there" if path.is_symlink() else None
    except ValueError:
        return "a name with a NUL character, which no file has"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a symbolic link that leads to itself"
        return None if error.errno == errno.ENOTDIR else str(error.strerror)


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


def likeness(one: str, other: str) -> float:
    """Return how alike two texts are, from 0 to 1, as `alike` counts it."""
    return difflib.SequenceMatcher(None, one, other).ratio()


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
