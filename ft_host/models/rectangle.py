"""Other layouts of a batch: with nothing shared, or as a padded rectangle."""

from __future__ import annotations

from dataclasses import replace

import torch

from ft_host.batch import Batch
from ft_host.util.transfer import to_device


def _starts(lengths: list[int]) -> list[int]:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts


def _rows_of(parents: list[int]) -> list[list[int]]:
    """Return the segments of each full sequence, root first, in the order of the leaves."""
    rows = []
    for leaf in sorted(set(range(len(parents))) - set(parents)):
        chain = [leaf]
        while parents[chain[-1]] >= 0:
            chain.append(parents[chain[-1]])
        rows.append(chain[::-1])
    return rows


def unshared(batch: Batch) -> Batch:
    """Return the same rows with nothing shared: each path from a root to a leaf is its own segment.

    Targets and rows keep their order. Values in a segment with several children are read from the first copy.
    """
    starts, rows = _starts(batch.lengths), _rows_of(batch.parents)
    order: list[int] = []  # for each new token, its old index
    where = torch.full((sum(batch.lengths),), -1, dtype=torch.long)
    for chain in rows:
        for segment in chain:
            start, length = starts[segment], batch.lengths[segment]
            if where[start] < 0:
                where[start : start + length] = torch.arange(len(order), len(order) + length)
            order.extend(range(start, start + length))
    was, now = to_device([torch.tensor(order), where], batch.input_ids.device)
    return replace(
        batch,
        input_ids=batch.input_ids[was],
        position_ids=batch.position_ids[was],
        lengths=[sum(batch.lengths[segment] for segment in chain) for chain in rows],
        parents=[-1] * len(rows),
        sources=now[batch.sources],
        ends=now[batch.ends],
    )


def rectangle(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Return the batch as rows from each root to each leaf, padded on the right.

    input_ids (B, L), attention_mask (B, L), for each flat token its index in the flattened rectangle, (T,), and whether
    there is any padding. A segment with several children is in several rows; its values are read from the first.
    """
    starts, rows = _starts(batch.lengths), _rows_of(batch.parents)
    lengths = batch.lengths
    sizes = [sum(lengths[segment] for segment in chain) for chain in rows]
    width = max(sizes)
    place = torch.zeros(len(rows), width, dtype=torch.long)  # index in the flat batch, 0 for padding
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    where = torch.full((sum(lengths),), -1, dtype=torch.long)  # index in the rectangle of each flat token
    for row, chain in enumerate(rows):
        at = 0
        for segment in chain:
            start, length = starts[segment], lengths[segment]
            place[row, at : at + length] = torch.arange(start, start + length)
            if where[start] < 0:
                where[start : start + length] = torch.arange(row * width + at, row * width + at + length)
            at += length
        mask[row, :at] = 1
    place, mask, where = to_device([place, mask, where], batch.input_ids.device)
    return batch.input_ids[place], mask, where, min(sizes) < width
