"""What `ft_collate` makes of rows."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING

from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.step import collated, shared_step

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.run import Run
    from ft_host.testing.conformance.subject import Subject
    from ft_host.types import Row

ABS = 1e-6  # of a column that is made of differences


def empty(subject: Subject) -> Figures:
    """A batch without rows beside one with some: the same columns and counts."""
    run, rows = shared_step(subject)
    [some] = collated(run, [rows])
    none = run.collate([])
    _alike(some, none)
    return {"columns": len(some.columns), "counts": len(some.counts)}


def counts(subject: Subject) -> Figures:
    run, rows = shared_step(subject)
    whole, parts = _parts(run, rows)
    for name, value in whole.counts.items():
        found = sum(part.counts.get(name, 0) for part in parts)
        if not math.isfinite(value) or value < 0:
            raise NotMet(f"the count {name!r} of {len(rows)} rows is {value}, expected a number of 0 or more")
        if not math.isclose(value, found, rel_tol=1e-6):
            raise NotMet(
                f"the count {name!r} of {len(rows)} rows is {value:g}, and of their two halves {found:g} in sum:"
                " the totals of a step would depend on how it is split"
            )
    return dict(whole.counts)


def columns(subject: Subject) -> Figures:
    """Those of a batch are those of its two halves, one behind the other."""
    import torch

    run, rows = shared_step(subject)
    whole, parts = _parts(run, rows)
    for name, column in whole.columns.items():
        if not column.dim():
            raise NotMet(
                f"the column {name!r} is one number of the batch, expected one for each row, target, token or group of"
                " rows; what is one number for the step is a count"
            )
        sizes = [len(part.columns[name]) for part in parts]
        if len(column) != sum(sizes):
            raise NotMet(
                f"the column {name!r} of {len(rows)} rows has {len(column)} values, and of their two halves"
                f" {' and '.join(map(str, sizes))}: not one for each row, target, token or group of rows"
            )
        if (
            column.is_floating_point()
            and len({part.columns[name].shape[1:] for part in parts} | {column.shape[1:]}) == 1
        ):
            halves = torch.cat([part.columns[name] for part in parts])
            if not torch.allclose(column, halves, rtol=1e-5, atol=ABS, equal_nan=True):
                apart = float((column - halves).abs().max())
                raise NotMet(
                    f"the column {name!r} of {len(rows)} rows isn't that of their two halves (up to {apart:.3g} apart):"
                    " a row's values depend on the rows beside it"
                )
    return {"columns": len(whole.columns)}


def texts(subject: Subject) -> Figures:
    """The leaves of a batch's prefix trees, with what is learnt of them, in whatever company their rows are."""
    run, rows = shared_step(subject)
    whole, parts = _parts(run, rows)
    found = _texts(whole)
    expected = sum(map(_texts, parts), Counter())
    if found != expected:
        odd = next(iter((found - expected) or (expected - found)))
        said = run.tokenizer.decode([token for token, _ in odd])
        raise NotMet(
            f"{len(rows)} rows make {found.total()} texts, and their two halves {expected.total()}, not all the same"
            f" ones; one is {said!r}: a row must not see the rows beside it, nor be learnt otherwise"
        )
    sizes = [part.num_rows for part in parts]
    if whole.num_rows != sum(sizes):
        raise NotMet(
            f"num_rows of {len(rows)} rows is {whole.num_rows}, and of their two halves {' and '.join(map(str, sizes))}"
        )
    return {"texts": found.total(), "rows": whole.num_rows}


def rows_kept(subject: Subject) -> Figures:
    run, rows = shared_step(subject)
    from ft_host.training.step import before_collating

    [rows] = before_collating(run, [rows])
    before = copy.deepcopy(rows)
    first = run.collate(rows)
    if rows != before:
        if len(rows) != len(before):
            raise NotMet(f"ft_collate is given {len(before)} rows and leaves {len(rows)} in the list")
        if sorted(map(repr, rows)) == sorted(map(repr, before)):
            raise NotMet("ft_collate puts the rows that it is given in another order")
        names = sorted({name for row, old in zip(rows, before) for name in row | old if row.get(name) != old.get(name)})
        raise NotMet(f"ft_collate changes {', '.join(names)} of the rows that it is given")
    second = run.collate(rows)
    if _texts(first) != _texts(second) or first.counts != second.counts:
        raise NotMet("ft_collate makes another batch of the same rows when it is called again")
    return {"rows": len(rows)}


# ---------------------------------------------------------------- parts of them


def _parts(run: Run, rows: list[Row]) -> tuple[Batch, list[Batch]]:
    """The batch of some rows, and those of their halves; rows of a group that stand together stay together."""
    from ft_host.training.normalisation import groups

    found = groups(rows)
    if len(found) < 2:
        found = [[row] for row in rows]
    middle = len(found) // 2
    halves = [[row for group in part for row in group] for part in (found[:middle], found[middle:])]
    [whole] = collated(run, [rows])
    return whole, collated(run, halves)


def _texts(batch: Batch) -> Counter[tuple[tuple[int, bool], ...]]:
    from ft_host.data.texts import texts_of

    found = Counter(tuple(zip(text.ids, text.supervised)) for text in texts_of(batch))
    for linked in batch.linked.values():
        found += _texts(linked)
    return found


def _alike(some: Batch, none: Batch, where: str = "") -> None:
    if not none.empty or none.num_rows or len(none.targets):
        raise NotMet(
            f"ft_collate([]) gives {where}{none.num_rows} rows and {len(none.targets)} targets, expected an empty batch"
        )
    for what, ours, theirs in (
        ("counts", none.counts, some.counts),
        ("columns", none.columns, some.columns),
        ("kinds", none.kinds, some.kinds),
        ("linked batches", none.linked, some.linked),
    ):
        if missing := theirs.keys() - ours.keys():  # one more is a column that rows of another config have
            raise NotMet(
                f"ft_collate([]) lacks {where}the {what} {', '.join(sorted(missing))}, which a batch with rows has"
            )
    for name, value in none.counts.items():
        if value != 0:
            raise NotMet(f"ft_collate([]) has {where}the count {name!r} of {value:g}, expected 0")
    for name, like in some.columns.items():
        column = none.columns[name]
        if len(column.shape) != len(like.shape) or len(column) or column.dtype != like.dtype:
            raise NotMet(
                f"ft_collate([]) has {where}the column {name!r} in shape {tuple(column.shape)} of {column.dtype}, and"
                f" with rows {tuple(like.shape)} of {like.dtype}; expected the same without values"
            )
    for name, linked in some.linked.items():
        _alike(linked, none.linked[name], f"in linked[{name!r}] ")


CHECKS: list[Check] = [
    Check(
        id="batch-empty",
        title="A batch without rows has each column of others, and counts of 0",
        about="method",
        why="A rank that has no rows left takes part in a step with an empty batch. What is missing from it ends the "
        "run on that rank alone, in the middle of a collective.",
        looks_at="`ft_collate([])` and a batch of some rows: names of counts, columns, kinds and linked batches, "
        "shapes and types of columns.",
        mend="Make counts and columns from lists that may be empty, with a `dtype`; leave out no column because there "
        "are no rows.",
        test=empty,
    ),
    Check(
        id="batch-counts",
        title="Counts add up",
        about="method",
        why="The host sums counts over micro-batches and ranks, and divides by them. A mean or a maximum has no sum.",
        looks_at="The counts of some rows, and those of their two halves in sum.",
        mend="Count: rows, pairs, tokens. What isn't a count of these rows belongs into a column.",
        test=counts,
    ),
    Check(
        id="batch-columns",
        title="A column has a value for each row, target, token or group, whatever the rows beside it",
        about="method",
        why="A value that depends on the company of a row changes with the number of processes and a token budget.",
        looks_at="Each column of some rows, and those of their two halves one behind the other: lengths, and values "
        "in floating point.",
        mend="Make statistics over rows in `ft_step` or `ft_rollout`, which see all rows of a step, and keep them in "
        "the rows.",
        test=columns,
    ),
    Check(
        id="batch-texts",
        title="A row's texts and targets are the same in whatever company",
        about="method",
        why="A row that sees the one before it learns to continue it.",
        looks_at="The texts of a batch of some rows, with what is learnt of each, and those of their two halves.",
        mend="Give each row segments of its own: `parent` is the row's own prompt or None, `row` its index, and "
        "`num_rows` the number of rows.",
        test=texts,
    ),
    Check(
        id="batch-rows-kept",
        title="Collating leaves its rows as they are",
        about="method",
        why="Rows are collated again: where a step is tried before the first update, and in each pass over a rollout.",
        looks_at="Rows before and after `ft_collate`, and its batch when it is called again.",
        mend="Sort and cut copies (`sorted(rows, key=...)`, `row | {...}`), or do it in `ft_prepare`.",
        test=rows_kept,
    ),
]
