"""Splits a step's rows into micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ft_host.types import Row


def split_micro_batches(
    units: list[list[Row]], per_batch: int, max_tokens: int | None, whole_units: bool = False
) -> list[list[Row]]:
    """Return the units of a step (a row, or the rows of a packed block) as micro-batches.

    By count: `per_batch` units each, in order. By tokens: first fit, longest first; a unit above the budget gets its
    own micro-batch. A prompt that rows of a unit share counts once.

    `whole_units`: a unit is a group of rows, and by count a micro-batch has as many units as have `per_batch` rows.
    """
    if max_tokens is None and whole_units:
        return list(filled(units, per_batch))
    if max_tokens is None:
        chunks = [units[i : i + per_batch] for i in range(0, len(units), per_batch)]
        return [[row for unit in chunk for row in unit] for chunk in chunks]
    sized = sorted(((size_of(unit), i) for i, unit in enumerate(units)), reverse=True)
    bins: list[tuple[int, list[int]]] = []
    for size, index in sized:
        for at, (used, members) in enumerate(bins):
            if used + size <= max_tokens:
                bins[at] = (used + size, [*members, index])
                break
        else:
            bins.append((size, [index]))
    return [[row for index in members for row in units[index]] for _, members in bins]


def filled(units: list[list[Row]], per_batch: int) -> Iterator[list[Row]]:
    """Micro-batches of whole units, as they come, of `per_batch` rows at most."""
    rows: list[Row] = []
    for unit in units:
        if rows and len(rows) + len(unit) > per_batch:
            yield rows
            rows = []
        rows = [*rows, *unit]
    if rows:
        yield rows


def size_of(unit: list[Row]) -> int:
    """Return the tokens of a unit in its layout: tokens that rows of a group share count once."""
    shared = sum(
        row["shared"] for last, row in itertools.pairwise(unit) if "shared" in row and row["group"] == last["group"]
    )
    return sum(row["length"] for row in unit) - shared


def units_of(rows: list[Row], budget: int) -> list[list[Row]]:
    """Rows of a group together, as many as the budget of tokens allows; their prompt counts once."""
    units: list[list[Row]] = []
    used = 0
    for row in rows:
        together = units and units[-1][-1]["group"] == row["group"]
        cost = row["length"] - (row["shared"] if together else 0)
        if together and used + cost <= budget:
            units[-1].append(row)
            used += cost
        else:
            units.append([row])
            used = row["length"]
    return units
