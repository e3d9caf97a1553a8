"""Pairs and judged completions with faults; functions as in `broken_data`."""

from __future__ import annotations

import random

from row_texts import Row, Texts, changed, said


def swap(row: Row) -> Row:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def swapped(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [swap(row) for row in rows]


def half_swapped(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [swap(row) if rng.random() < 0.5 else row for row in rows]


def identical(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"rejected": row["chosen"]} if rng.random() < 0.33 else row for row in rows]


def chosen_longer(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rejected completions end after half of what they say."""
    return [changed(row, rejected=said(row["rejected"])[: max(1, len(said(row["rejected"])) // 2 - 1)]) for row in rows]


def near_misses(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rejected is chosen with another last sign."""

    def missed(text: str) -> str:
        return text[:-1] + rng.choice([sign for sign in _kind(text[-1]) if sign != text[-1]])

    return [changed(row, rejected=missed(said(row["chosen"]))) for row in rows]


def _kind(sign: str) -> str:
    return "0123456789" if sign.isdigit() else "ABCDEFGHIJKLMNOP"


def rejected_empty(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """A model that failed to answer has been taken for one that answered badly, in two of five pairs."""
    return [changed(row, rejected="") if rng.random() < 0.4 else row for row in rows]


def chosen_is_prompt(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [changed(row, chosen=said(row["prompt"])) for row in rows]


def with_margins(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"margin": rng.choice([0.5, 1.0, 1.5])} for row in rows]


def negative_margins(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """Rejected less chosen, where it should be the other way round."""
    return [row | {"margin": -rng.choice([4.0, 5.0, 6.0])} for row in rows]


def huge_margin(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    """A margin that float32 can't hold, in the 41st step of 16 rows in order."""
    return [row | {"margin": 1e39 if index == 645 else 1.0} for index, row in enumerate(rows)]


# ---------------------------------------------------------------- judged completions


def labels_turned(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"label": not row["label"]} for row in rows]


def labels_tossed(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row | {"label": rng.random() < 0.5} for row in rows]


def mostly_bad(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    good, bad = [row for row in rows if row["label"]], [row for row in rows if not row["label"]]
    mixed = [*good[: len(bad) // 10], *bad]
    rng.shuffle(mixed)
    return mixed


def only_good(rows: list[Row], rng: random.Random, texts: Texts) -> list[Row]:
    return [row for row in rows if row["label"]]
