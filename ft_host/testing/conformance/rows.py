"""Rows of the suite, by format. Imports no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from ft_host.testing.rows import pair, sentence
from ft_host.types import Row


def _texts(noise: random.Random) -> Row:
    return {"text": sentence(noise, 16)}


def _prompts(noise: random.Random) -> Row:
    return {"prompt": f"{sentence(noise, 8)}? "}


def _completions(noise: random.Random) -> Row:
    return {"prompt": f"{sentence(noise, 8)}?", "completion": f" {sentence(noise, 9)}"}


def _judged(noise: random.Random) -> Row:
    return _completions(noise) | {"label": noise.random() < 0.5}


MAKERS: dict[str, Callable[[random.Random], Row]] = {
    "language modeling": _texts,
    "prompt-only": _prompts,
    "prompt-completion": _completions,
    "preference": pair,
    "unpaired preference": _judged,
}


def rows_of(format: str, count: int) -> list[Row]:
    """So many rows of a format of `ft_host.config.FORMATS`, the same at every call; no two are alike."""
    noise, found = random.Random(4), []
    while len(found) < count:
        row = MAKERS[format](noise)
        if row not in found and row.get("chosen") != row.get("rejected", ""):
            found.append(row)
    return found


def with_columns(rows: list[Row], names: Iterable[str]) -> list[Row]:
    """The rows with further columns of text, the same at every call."""
    noise = random.Random(6)
    return [row | {name: sentence(noise, 9) for name in names} for row in rows]


def as_conversation(format: str, row: Row) -> Row:
    """The same row in messages: its prompt a user's, its texts an assistant's."""
    if format == "language modeling":
        return {"messages": [_message("user", "the question?"), _message("assistant", row["text"])]}
    said = {
        name: [_message("user" if name == "prompt" else "assistant", row[name])]
        for name in ("prompt", "completion", "chosen", "rejected")
        if name in row
    }
    return row | said


def _message(role: str, content: str) -> Row:
    return {"role": role, "content": content.strip()}
