"""Compares raw rows with each other before a model is loaded: duplicates, and evaluation rows that are trained on."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
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
COMMON = 8  # rows: a sentence in more of them is one that rows of this kind have
SIGNS = re.compile(r"[\s.,;:!?\"'()\[\]*_`]+")
ENDS_OF_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n")
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
REPLIES = ("assistant", "gpt", "model", "bot")
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
    """Return facts about duplicate rows, rows that say the opposite of others, and evaluation rows that are trained on,
    ignoring whitespace and case."""
    whole: dict[int, int] = {}
    prompts: set[int] = set()
    sides: dict[int, set[bool]] = {}
    sentences = Sentences()
    for row in within(sample_of(source, COMPARED), CHARACTERS):
        name = name_of(row)
        whole[name] = whole.get(name, 0) + 1
        prompts |= prompt_name(row)
        for claim, holds in preferences(row):
            sides.setdefault(claim, set()).add(holds)
        if held_out is not None:
            sentences.add(row)
    count = sum(whole.values())
    facts: dict[str, Any] = {"data/duplicate_rows": 1 - len(whole) / max(count, 1), "data/compared": count}
    both = sum(len(each) == 2 for each in sides.values())
    if both:
        facts["data/both_ways"] = both / len(sides)
    if held_out is None:
        return facts
    rows = same = near = with_prompt = shared = 0
    for row in within(sample_of(held_out, HELD_OUT), HELD_OUT_CHARACTERS):
        rows += 1
        known = name_of(row) in whole
        same += known
        near += not known and sentences.has(row)
        prompt = prompt_name(row)
        with_prompt += bool(prompt)
        shared += bool(prompt & prompts)
    facts["data/eval_overlap_rows"] = same / max(rows, 1)
    facts["data/eval_near_rows"] = near / max(rows, 1)
    if with_prompt:
        facts["data/eval_overlap_prompts"] = shared / with_prompt
    return facts


class Sentences:
    """Which training rows a sentence is in, signs and case apart, so that rows which differ in little are found."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}
        self.count = 0

    def add(self, row: Row) -> None:
        for sentence in sentences_of(row):
            found = self.rows.setdefault(sentence, [])
            if len(found) <= COMMON:
                found.append(self.count)
        self.count += 1

    def has(self, row: Row) -> bool:
        """Whether one training row has two thirds of a row's sentences. Those that many rows have don't count."""
        rare = [each for each in sentences_of(row) if len(self.rows.get(each, ())) <= COMMON]
        found = Counter(index for each in rare for index in self.rows.get(each, ()))
        return bool(found) and found.most_common(1)[0][1] >= max(1, 2 * len(rare) / 3)


def sentences_of(row: Row) -> set[int]:
    """Return hashes of the sentences of a row's content, those of five words or more."""
    text = " ".join(texts_in([row[name] for name in CONTENT if row.get(name) is not None]))
    split = (SIGNS.sub(" ", part).split() for part in ENDS_OF_SENTENCES.split(text.lower()))
    return {hash(" ".join(words)) for words in split if len(words) >= 5}


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts within lists and mappings; of messages, their contents."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_in([value.get("content") or value.get("value")])
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)


def preferences(row: Row) -> list[tuple[int, bool]]:
    """Return what a row claims, as hashes, and whether it says so or the opposite: that of two completions the one is
    better, or that a completion is good."""
    prompt = row.get("prompt")
    if row.get("chosen") is not None and row.get("rejected") is not None:
        pair = [_hash(row["chosen"]), _hash(row["rejected"])]
        return [] if pair[0] == pair[1] else [(_hash([prompt, *sorted(pair)]), pair[0] < pair[1])]
    completion = row.get("completion", row.get("messages"))
    label = row.get("label")
    return [(_hash([prompt, completion]), label)] if isinstance(label, bool) and completion is not None else []


def name_of(row: Row) -> int:
    """Return a hash of the row's content."""
    columns = [name for name in CONTENT if row.get(name) is not None]
    return _hash([row[name] for name in columns] if columns else sorted((name, str(row[name])) for name in row))


def prompt_name(row: Row) -> set[int]:
    """Return a hash of the row's prompt, of messages all before the last answer; empty if it has none."""
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    if column is not None:
        return {_hash([row[column], row.get("input") if column == "instruction" else None])}
    talk = row.get("messages") or row.get("conversations")
    turns = [turn for turn in talk if isinstance(turn, dict)] if isinstance(talk, list) else []
    last = max((at for at, turn in enumerate(turns) if (turn.get("role") or turn.get("from")) in REPLIES), default=0)
    return {_hash(turns[:last])} if last else set()


def _hash(value: Any) -> int:
    text = " ".join(json.dumps(value, ensure_ascii=False, default=str).replace("\\n", " ").lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
