"""One JSON object to one row: refused where another reader would see another row, or a later step would fail on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ft_host.errors import DataError
from ft_host.types import Row

DEEPEST = 100  # brackets in brackets: more than rows have, and fewer than any reader's stack allows

AROUND = ("data", "rows", "train", "test", "validation", "examples", "instances", "items", "records")


class Doubled(ValueError):
    """A key stands twice in one object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its pairs. Raises Doubled for a key that stands twice: of the values one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Doubled(f"the key {key!r} stands twice in one object; one of its values would be lost")
            seen.add(key)
    return found


def parse(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError that says what is wrong with it, without a place."""
    try:
        value = json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError(f"brackets are nested too deep; at most {DEEPEST} levels can be read") from error
    if text.count("[") + text.count("{") > DEEPEST and depth(value) > DEEPEST:
        raise ValueError(f"brackets are nested {depth(value)} deep; at most {DEEPEST} levels can be read")
    if "\\ud" in text or "\\uD" in text:
        path = lone_surrogate(value)
        if path is not None:
            raise ValueError(
                f"{path or 'a key'} has half a character (a \\ud8.. or \\udc.. without its other half), as of an emoji "
                "that was cut in two; no tokenizer takes it. Take it out"
            )
    return value


def parse_object(text: str, where: str) -> Row:
    """Return the row of a JSON text. Raises DataError that names the place."""
    try:
        row = parse(text)
    except ValueError as error:
        decoding = isinstance(error, json.JSONDecodeError)
        reason = f"not JSON: {error.msg} at column {error.pos + 1}" if decoding else str(error)
        begin = f"; the line begins with {text.strip()[:60]!r}" if decoding else ""
        raise DataError(f"{where}: {reason}{begin}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__} {str(row)[:40]!r}, expected an object {{column: value}}")
    return row


def depth(value: Any) -> int:
    """Return how deep lists and objects are nested in one another; 0 for a plain value."""
    deepest, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        deepest += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return deepest


def lone_surrogate(value: Any, path: str = "") -> str | None:
    """Return where a text can't be encoded, as in "messages[2].content"; "" for a key; None where all can."""
    if isinstance(value, str):
        return path if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        if any(lone_surrogate(key, "x") for key in value):
            return ""
        children = ((f"{path}.{key}" if path else key, child) for key, child in value.items())
    elif isinstance(value, list):
        children = ((f"{path}[{index}]", child) for index, child in enumerate(value))
    return next((found for name, child in children if (found := lone_surrogate(child, name)) is not None), None)


def not_rows(value: Any) -> str | None:
    """Return what a whole file holds instead of rows: columns, as `DataFrame.to_json` writes, or one object around the
    rows. None where it may be a row."""
    if not isinstance(value, dict) or not value:
        return None
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        keys = list(columns[0])
        if len(keys) > 1 and all(list(column) == keys for column in columns) and keys[:2] == ["0", "1"]:
            return f"one object of {len(columns)} columns with {len(keys)} values each"
    if not all(isinstance(column, list) for column in columns):
        return None
    if len(columns) == 1 and next(iter(value)) in AROUND:
        return f"one object whose key {next(iter(value))!r} holds {len(columns[0])} rows"
    # A row may have lists of messages, of ids and of tools, but none whose items are texts or lists.
    texts = any(column and all(isinstance(item, (str, list)) for item in column) for column in columns)
    if texts and len({len(column) for column in columns}) == 1 and len(columns[0]) > 1:
        return f"one object of {len(columns)} columns with {len(columns[0])} values each"
    return None
