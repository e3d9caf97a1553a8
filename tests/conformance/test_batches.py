"""Checks about batches: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import batches

SIZES = 'columns = {"sizes": torch.tensor(sizes, dtype=torch.float32)}'
COUNTS = 'counts={"rows": len(rows), "tokens": sum(sizes)}'
SEGMENTS = "    segments = [Segment("
WRONG = [
    Wrong(
        name="a batch without rows has no column",
        old=f"    {SIZES}",
        new=f"    {SIZES} if rows else {{}}",
        fails="batch-empty",
    ),
    Wrong(
        name="a batch without rows counts one",
        old=COUNTS,
        new=COUNTS.replace("len(rows)", "max(len(rows), 1)"),
        fails="batch-empty",
    ),
    Wrong(
        name="a column without values has another type",
        old=SIZES,
        new='columns = {"sizes": torch.tensor(sizes, dtype=torch.float32 if rows else torch.long)}',
        fails="batch-empty",
    ),
    Wrong(
        name="a mean is given as a count",
        old=COUNTS,
        new='counts={"rows": len(rows), "tokens": sum(sizes) / max(len(rows), 1)}',
        fails="batch-counts",
    ),
    Wrong(
        name="a column is divided by its mean over the batch",
        old=SIZES,
        new="of_all = torch.tensor(sizes, dtype=torch.float32)\n"
        '    columns = {"sizes": of_all / (of_all.mean() if rows else 1)}',
        fails="batch-columns",
    ),
    Wrong(
        name="a column has one value for the batch",
        old=SIZES,
        new='columns = {"sizes": torch.tensor([float(sum(sizes))][: len(rows)])}',
        fails="batch-columns",
    ),
    Wrong(
        name="a row sees the row before it",
        old='labels=row["labels"], row=i)',
        new='labels=row["labels"], row=i, parent=i - 1 if i else None)',
        fails="batch-texts",
    ),
    Wrong(
        name="there is a row too many",
        old="num_rows=len(rows), columns",
        new="num_rows=len(rows) + bool(rows), columns",
        fails="batch-texts",
    ),
    Wrong(
        name="rows are sorted where they stand",
        old=SEGMENTS,
        new=f'    rows.sort(key=lambda row: row["length"])\n{SEGMENTS}',
        fails="batch-rows-kept",
        also=("batch-columns",),
    ),
    Wrong(
        name="tokens are taken out of the rows",
        old=SEGMENTS,
        new=f'    for row in rows:\n        row["labels"] = row["labels"][:-1] + [-100]\n{SEGMENTS}',
        fails="batch-rows-kept",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(batches.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(batches.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in batches.CHECKS} == {wrong.fails for wrong in WRONG}
