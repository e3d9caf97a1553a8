"""The .jsonl files of a run: appending a line, and reading what can be read. Imports no torch.

A line ends with "\n" and with nothing else: not with U+2028, which a text in it may hold. The last line may be torn: it
was being written when the run was killed or the disk was full. Readers leave it out, and the next line that is written
takes its place.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ft_host.errors import UsageError
from ft_host.util.jsonl import WORDS, json_line

# What a resumed run needs in the lines of each file.
NEEDED: dict[str, dict[str, type]] = {
    "metrics.jsonl": {"kind": str, "step": int},
    "samples.jsonl": {"step": int},
    "findings.jsonl": {"step": int, "code": str, "fingerprint": str, "state": str, "severity": str},
    "timeline.jsonl": {"step": int, "side": str},
}


# ---------------------------------------------------------------- writing


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append a line, in a single write."""
    with path.open("ab+") as file:
        _mend_end(file)
        file.write(json_line(entry).encode())


def _mend_end(file: BinaryIO) -> None:
    """Take a torn last line away, or give a whole one the end that it lacks. Leaves the file at its end."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    torn = content[content.rfind(b"\n") + 1 :]
    if isinstance(_parsed(torn)[0], dict):
        file.write(b"\n")
    else:
        file.truncate(size - len(torn))
    file.seek(0, os.SEEK_END)


# ---------------------------------------------------------------- reading


def _parsed(line: bytes) -> tuple[Any, str | None]:
    """Return what a line holds, and what is wrong with it."""
    try:
        return json.loads(line.decode("utf-8", "replace")), None
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        return None, str(error)


def _numbered(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Yield (line, what it holds, what is wrong with it) for each line of a file that isn't empty. Yields nothing for
    a missing file."""
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, problem = _parsed(line)
        if problem is not None and number == len(lines):
            yield number, None, "cut off; the run was stopped while writing it, or is writing it now"
        elif problem is not None or not isinstance(row, dict):
            yield number, None, problem or f"expected an object, found {type(row).__name__}"
        else:
            yield number, row, None


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the objects of a .jsonl file, and problems in reading it. A missing file has no lines."""
    found = list(_numbered(path))
    rows = [row for _, row, problem in found if problem is None]
    return rows, [f"{path.name}, line {number}: {problem}" for number, _, problem in found if problem is not None]


def read_whole(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file of a run that goes on, without a torn last line. Raises UsageError, which
    names the line, where one can't be read or lacks what the run needs."""
    needed = NEEDED.get(path.name, {})
    found = list(_numbered(path))
    for number, row, problem in found:
        if problem is None:
            odd = [f"{name} ({kind.__name__})" for name, kind in needed.items() if not _is(row.get(name), kind)]
            problem = f"it has no {' and no '.join(odd)}" if odd else None
        elif problem.startswith("cut off"):
            continue
        if problem is not None:
            raise UsageError(
                f"{path}, line {number}: {problem}. The run can't go on from a log that is damaged: mend or delete that"
                f" line, or move {path.name} away (what it tells of the steps so far is then missing), and resume again"
            )
    return [row for _, row, problem in found if problem is None]


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_step(value: Any) -> bool:
    """Return whether a value is the number of a step. A line of a damaged file may hold anything."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def fits(value: Any, form: Any) -> bool:
    """Return whether a value has a form: a type, an object with some fields, or a list of such."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(name in value and fits(value[name], part) for name, part in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(each, form[0]) for each in value)
    return is_step(value) if form is int else isinstance(value, form)


def settled(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that count, each with a kind and a step: one for each step, and one for each
    evaluation. A step that was logged again takes the place of the first and of all that came after it: the run had
    gone back to a checkpoint."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        kind, step = line["kind"], line["step"]
        while kept and (
            kept[-1]["step"] > step or (kept[-1]["step"] == step and (kind == "train" or kept[-1]["kind"] == kind))
        ):
            kept.pop()
        kept.append(line)
    return kept


def usable(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that are a step or an evaluation, each once (see `settled`)."""
    steps = (line for line in lines if _is(line.get("step"), int) and is_step(line["step"]))
    return settled(line for line in steps if line.get("kind") in ("train", "eval"))


def number_of(value: Any) -> float | None:
    """Return a metric's number, or None for anything else.

    A run writes nan, inf and -inf as words, since JSON has none. Values beyond 1e300 count as infinite, so that
    differences can be computed.
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        return WORDS.get(value)
    if not isinstance(value, (int, float)):
        return None
    if abs(value) > 1e300:
        return math.inf if value > 0 else -math.inf
    return float(value)
