"""What `eval_dataset` may be: one data set, or several, each with a name that its metrics have."""

from __future__ import annotations

import re
from typing import Any

NAME = re.compile(r"\w[\w.-]*")


def one_set(spec: Any) -> dict[str, Any] | None:
    """Return {path, ...} of a single data set, given as a path or as such a mapping; None for several."""
    if isinstance(spec, str):
        return {"path": spec}
    return spec if isinstance(spec, dict) and isinstance(spec.get("path"), str) else None


def named_sets(spec: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """Return {name: data set} of several; a data set is a path or {path, ...}. Those of a list are named after their
    files: math of data/math.jsonl."""
    if isinstance(spec, dict):
        return spec
    named: dict[str, Any] = {}
    for item in spec:
        path = item.get("path") if isinstance(item, dict) else item
        stem = re.sub(r"\W+", "-", str(path).rstrip("/").rpartition("/")[2].partition(".")[0]).strip("-") or "set"
        name, number = stem, 2
        while name in named:
            name, number = f"{stem}-{number}", number + 1
        named[name] = item
    return named


def paths_of(spec: Any) -> list[str]:
    """Return the paths of all data sets of `eval_dataset`."""
    alone = one_set(spec)
    items = [alone] if alone is not None else list(named_sets(spec).values()) if spec else []
    return [str(item["path"] if isinstance(item, dict) else item) for item in items]


def name_problem(name: str) -> str | None:
    """Return why a set can't have a name: it is a part of the names of metrics."""
    return None if NAME.fullmatch(name) else f"{name!r} is no name for metrics; use letters, digits, _ . and -"
