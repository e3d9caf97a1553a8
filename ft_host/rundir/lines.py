"""The lines of a run's .jsonl files, as far as they can be read. Imports no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the objects of a .jsonl file, and problems in reading it. A missing file has no lines.

    A last line without its end was being written when the run was stopped.
    """
    if not path.is_file():
        return [], []
    rows, problems = [], []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for index, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                cut = not line.endswith("\n")
                problems.append(
                    f"{path.name}, line {index}: cut off; the run was stopped while writing it, or is writing it now"
                    if cut
                    else f"{path.name}, line {index}: {error}"
                )
                continue
            if isinstance(row, dict):
                rows.append(row)
            else:
                problems.append(f"{path.name}, line {index}: expected an object, found {type(row).__name__}")
    return rows, problems


def number_of(value: Any) -> float | None:
    """Return a metric's number, or None for anything else.

    A run writes nan, inf and -inf as words, since JSON has none. Values beyond 1e300 count as infinite, so that
    differences can be computed.
    """
    if value is None:
        return math.nan
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if not isinstance(value, (int, float)):
        return None
    if abs(value) > 1e300:
        return math.copysign(math.inf, value)
    return float(value)
