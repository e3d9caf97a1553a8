"""Rows with faults. Each function takes the rows, a random.Random and a `Texts`, and gives the rows that are used
instead. A prompt or a completion is a text, or a list of messages, whose last one is changed."""

from __future__ import annotations

import random

from broken_pairs import *  # noqa: F403
from row_texts import Row, Texts, as_tokens, changed, said

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


def other_script(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Letters and digits as those of another script, for a tokenizer that knows ASCII only."""

    def written(text: str) -> str:
        return "".join(chr(0x430 + ord(sign) % 32) if sign.isalnum() else sign for sign in text)

    return [changed(row, **{name: written(said(row[name])) for name in ("prompt", "completion")}) for row in rows]


def garbage(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rows 961 to 1088, which are steps 61 to 68 of 16 rows in order, are random signs."""
    signs = sorted({sign for row in rows[:200] for sign in said(row["completion"])})

    def noise(text: str) -> str:
        return "".join(rng.choice(signs) for _ in text)

    return [
        changed(row, completion=noise(said(row["completion"]))) if 960 <= index < 1088 else row
        for index, row in enumerate(rows)
    ]


def long_tail(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Every eighth completion is that of ten rows."""
    out = []
    for index, row in enumerate(rows):
        others = rows[index : index + 9] if index % 8 == 0 else []
        out.append(changed(row, completion="\n".join(said(each["completion"]) for each in [row, *others])))
    return out


def empty_third(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """A join that found nothing for a third of the rows."""
    return [changed(row, completion="") if rng.random() < 1 / 3 else row for row in rows]


def empty_all(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """The column that was read for completions isn't the one that has them."""
    return [changed(row, completion="") for row in rows]


def exchanged(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """The columns prompt and completion, each under the other's name."""
    return [changed(row, prompt=said(row["completion"]), completion=said(row["prompt"])) for row in rows]


def echoes(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """The completion repeats its prompt, and then says what it should."""
    return [changed(row, completion=said(row["prompt"]) + said(row["completion"])) for row in rows]


def copies(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """The completion is the prompt: one column was read twice."""
    return [changed(row, completion=said(row["prompt"])) for row in rows]


def all_alike(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Nine completions of ten are one text: a default that was written where none was found."""
    text = said(rows[0]["completion"])
    return [changed(row, completion=text) if rng.random() < 0.9 else row for row in rows]


def marked(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Marks of another model's template, left in the texts."""
    return [changed(row, completion=f"<|im_start|>assistant\n{said(row['completion'])}<|im_end|>") for row in rows]


def shifted(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Each prompt has the completion of the row before: two files that were joined by their lines."""
    return [changed(row, completion=said(other["completion"])) for row, other in zip(rows, [rows[-1], *rows[:-1]])]


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


# ---------------------------------------------------------------- answers and what a teacher is shown


def answers_shifted(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Each prompt is checked against the answer of the row before."""
    return [row | {"answer": other["answer"]} for row, other in zip(rows, [rows[-1], *rows[:-1]])]


def answers_spaced(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Answers with a space behind them, as a CSV may leave it: no completion is the same."""
    return [row | {"answer": f"{row['answer']} "} for row in rows]


def nothing_shown(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"privileged_context": ""} for row in rows]


def others_shown(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """The teacher is shown what belongs to the row before."""
    name = "privileged_context"
    return [row | {name: other[name]} for row, other in zip(rows, [rows[-1], *rows[:-1]])]
