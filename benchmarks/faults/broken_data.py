"""Rows with faults. Each function takes the rows, a random.Random and a `Texts`, and gives the rows that are used
instead."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """What some faults need beside the rows: the tokenizer of the model, and the other rows of the run."""

    tokenizer: Any
    train: list[Row]


def as_tokens(row: Row, tokenizer: Any) -> Row:
    """A prompt and its completion as tokens that are supervised on the completion and EOS."""
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    completion = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion}


# ---------------------------------------------------------------- supervised tokens


def all_masked(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    made = [as_tokens(row, texts.tokenizer) for row in rows]
    return [row | {"labels": [-100] * len(row["labels"])} for row in made]


def some_masked(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    made = [as_tokens(row, texts.tokenizer) for row in rows]
    return [row | {"labels": [-100] * len(row["labels"])} if rng.random() < 0.3 else row for row in made]


def eos_masked(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    made = [as_tokens(row, texts.tokenizer) for row in rows]
    return [row | {"labels": [*row["labels"][:-1], -100]} for row in made]


def eos_absent(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    made = [as_tokens(row, texts.tokenizer) for row in rows]
    return [{name: values[:-1] for name, values in row.items()} for row in made]


def bos_twice(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Conversations as tokens, by a template that writes BOS and a tokenizer that adds it."""
    made = []
    for row in rows:
        ids = texts.tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
        bos = texts.tokenizer.bos_token_id
        made.append({"input_ids": [bos, bos, *ids], "labels": [bos, bos, *ids]})
    return made


# ---------------------------------------------------------------- texts


def in_words(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Digits as words, for a tokenizer that knows digits only."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def spelt(text: str) -> str:
        return "".join(f"{words[int(sign)]} " if sign.isdigit() else sign for sign in text)

    return [row | {"prompt": spelt(row["prompt"]), "completion": spelt(row["completion"])} for row in rows]


def garbage(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rows 961 to 1088, which are steps 61 to 68 of 16 rows in order, are random signs."""

    def noise(text: str) -> str:
        return "".join(rng.choice("0123456789+=\n") for _ in text)

    return [row | {"completion": noise(row["completion"])} if 960 <= i < 1088 else row for i, row in enumerate(rows)]


def long_tail(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Every eighth completion is that of ten rows."""
    out = []
    for index, row in enumerate(rows):
        others = [each["completion"] for each in rows[index : index + 9]] if index % 8 == 0 else []
        out.append(row | {"completion": "\n".join([row["completion"], *others])})
    return out


# ---------------------------------------------------------------- which rows


def ten_times(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row for row in rows[: len(rows) // 10] for _ in range(10)]


def forty(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return rows[:40]


def sixty(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return rows[:60]


def half_of_train(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    half = len(rows) // 2
    return [*rows[:half], *texts.train[:half]]


def first_of_train(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return texts.train[: len(rows)]


# ---------------------------------------------------------------- pairs and judged completions


def swap(row: Row) -> Row:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def swapped(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [swap(row) for row in rows]


def half_swapped(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [swap(row) if rng.random() < 0.5 else row for row in rows]


def identical(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"rejected": row["chosen"]} if rng.random() < 0.33 else row for row in rows]


def chosen_longer(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rejected completions end after half of their lines."""
    return [row | {"rejected": row["rejected"][: max(1, len(row["rejected"]) // 2 - 1)]} for row in rows]


def near(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rejected is chosen with another last digit."""

    def missed(text: str) -> str:
        return text[:-1] + rng.choice([digit for digit in "0123456789" if digit != text[-1]])

    return [row | {"rejected": missed(row["chosen"])} for row in rows]


def labels_turned(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"label": not row["label"]} for row in rows]


def labels_tossed(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"label": rng.random() < 0.5} for row in rows]


def with_margins(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"margin": rng.choice([0.5, 1.0, 1.5])} for row in rows]


def huge_margin(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """A margin that float32 can't hold, in the 41st step of 16 rows in order."""
    return [row | {"margin": 1e39 if index == 645 else 1.0} for index, row in enumerate(rows)]


def mostly_bad(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    good, bad = [row for row in rows if row["label"]], [row for row in rows if not row["label"]]
    mixed = [*good[: len(bad) // 10], *bad]
    rng.shuffle(mixed)
    return mixed


def only_good(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row for row in rows if row["label"]]
