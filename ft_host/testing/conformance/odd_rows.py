"""Rows that users send by mistake, by format. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ft_host.types import Row

TEXTS = {
    "language modeling": ("text",),
    "prompt-only": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired preference": ("prompt", "completion"),
}
NO_TEXT: tuple[Any, ...] = (7, 0.5, True, None, ["a", 7], {"a": 1}, [[]])
LONG = 200  # times over


def without_prompt(format: str, row: Row) -> Iterator[tuple[str, Row]]:
    """What is odd, and the row: here a prompt that is empty, or isn't there."""
    if "prompt" in TEXTS[format]:
        yield "an empty prompt", row | {"prompt": ""}
        yield "no column prompt", {name: value for name, value in row.items() if name != "prompt"}


def empty(format: str, row: Row) -> Iterator[tuple[str, Row]]:
    """Texts that are empty, one and all, and a row without columns."""
    for name in TEXTS[format]:
        if name != "prompt":
            yield f"an empty {name}", row | {name: ""}
            yield f"a {name} of spaces", row | {name: "  "}
    yield "all texts empty", row | dict.fromkeys(TEXTS[format], "")
    yield "no columns", {}


def identical(format: str, row: Row) -> Iterator[tuple[str, Row]]:
    if format == "preference":
        yield "the same text chosen and rejected", row | {"rejected": row["chosen"]}


def over_long(format: str, row: Row) -> Iterator[tuple[str, Row]]:
    for name in TEXTS[format]:
        yield f"a long {name}", row | {name: row[name] + " again" * LONG}
    yield "all texts long", row | {name: row[name] + " again" * LONG for name in TEXTS[format]}


def of_other_types(format: str, row: Row) -> Iterator[tuple[str, Row]]:
    """Something else than text in each column, and columns that are misspelt."""
    for name in TEXTS[format]:
        for value in NO_TEXT:
            yield f"{name}: {value!r}", row | {name: value}
    if "label" in row:
        for value in ("yes", 7, None):
            yield f"label: {value!r}", row | {"label": value}
    yield "misspelt columns", {f"{name}s": value for name, value in row.items()}
