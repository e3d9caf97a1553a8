"""Compares raw rows with each other before a model is loaded: duplicates, and evaluation rows that are trained on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any, TypeVar

from ft_host.data import Source
from ft_host.data.mixture import Mixture
from ft_host.errors import DataError
from ft_host.types import Row

T = TypeVar("T")

# The most rows and characters of the training data and of the evaluation data that are compared. Not a limit of time:
# what is found would depend on how busy the machine is.
COMPARED, CHARACTERS = 20_000, 20_000_000
HELD_OUT, HELD_OUT_CHARACTERS = 5_000, 5_000_000
# Columns that identify a row, if it has any of them: ids, sources and scores don't make it another row.
CONTENT = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "label",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "response",
    "solution",
    "query",
    "prompt_ids",
    "completion_ids",
    "chosen_ids",
    "rejected_ids",
    "input_ids",
    "labels",
)
PROMPTS = ("prompt", "question", "instruction", "query")


def sample_of(source: Any, count: int) -> Iterator[Row]:
    """Return up to `count` raw rows, evenly spaced; of a stream, the first ones."""
    return (row for _, row in placed_sample(source, count))


def placed_sample(source: Any, count: int) -> Iterator[tuple[str, Row]]:
    """As `sample_of`, each row with its place."""
    if not isinstance(source, (Source, Mixture)):
        return readable(itertools.islice(source.stream(), count))
    size = source.num_rows
    count = min(count, size)
    places = (index * size // count for index in range(count))
    return readable((source.where(place), source.read(place)) for place in places)


def readable(rows: Iterator[T]) -> Iterator[T]:
    """Yield the rows up to one that can't be read."""
    try:
        yield from rows
    except DataError:
        return


def within(rows: Iterator[Row], characters: int) -> Iterator[Row]:
    """Yield rows up to the one with which they have so many characters."""
    for row in rows:
        yield row
        characters -= len(str(row))
        if characters < 0:
            return


def compare(source: Any, held_out: Any) -> dict[str, Any]:
    """Return facts about duplicate rows, and evaluation rows that are trained on, ignoring whitespace and case."""
    whole: dict[int, int] = {}
    prompts: set[int] = set()
    count = 0
    for row in within(sample_of(source, COMPARED), CHARACTERS):
        name = name_of(row)
        whole[name] = whole.get(name, 0) + 1
        prompts |= prompt_name(row)
        count += 1
    facts: dict[str, Any] = {"data/duplicate_rows": 1 - len(whole) / max(count, 1), "data/compared": count}
    if held_out is None:
        return facts
    rows = same = with_prompt = shared = 0
    for row in within(sample_of(held_out, HELD_OUT), HELD_OUT_CHARACTERS):
        rows += 1
        same += name_of(row) in whole
        prompt = prompt_name(row)
        with_prompt += bool(prompt)
        shared += bool(prompt & prompts)
    facts["data/eval_overlap_rows"] = same / max(rows, 1)
    if with_prompt:
        facts["data/eval_overlap_prompts"] = shared / with_prompt
    return facts


def name_of(row: Row) -> int:
    """Return a hash of the row's content."""
    columns = [name for name in CONTENT if row.get(name) is not None]
    return _hash([row[name] for name in columns] if columns else sorted((name, str(row[name])) for name in row))


def prompt_name(row: Row) -> set[int]:
    """Return a hash of the row's prompt; empty if it has no such column."""
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    return set() if column is None else {_hash([row[column], row.get("input") if column == "instruction" else None])}


def _hash(value: Any) -> int:
    text = " ".join(json.dumps(value, ensure_ascii=False, default=str).replace("\\n", " ").lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
