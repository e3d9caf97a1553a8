"""Packs rows into blocks of a size. Pure functions of lengths and lists; TRL's `pack_dataset` gives the same blocks."""

from __future__ import annotations

import bisect
from collections import defaultdict, deque

from ft_host.errors import ConfigError
from ft_host.types import Row

SPLITTABLE = {"input_ids", "labels", "length", "truncated"}


def best_fit_decreasing(lengths: list[int], size: int) -> list[list[int]]:
    """Return indices of rows, in blocks of at most `size` tokens; a longer row counts as `size`.

    Longest first, each into the block with the least room that fits ("Fewer Truncations Improve Language Modeling",
    arXiv 2404.10830). Blocks with the same room take turns. Rows without tokens are left out.
    """
    blocks: list[list[int]] = []
    rooms: list[int] = []  # the distinct rooms left in blocks, ascending
    waiting: dict[int, deque[int]] = defaultdict(deque)  # room -> the blocks that have it, oldest first
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -min(lengths[i], size)):
        length = min(lengths[index], size)
        at = bisect.bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            block = waiting[room].popleft()
            if not waiting[room]:
                del rooms[at]
        else:
            room, block = size, len(blocks)
            blocks.append([])
        blocks[block].append(index)
        left = room - length
        if left:
            if not waiting[left]:
                bisect.insort(rooms, left)
            waiting[left].append(block)
    return blocks


def split(rows: list[Row], size: int) -> list[Row]:
    """Cut rows into pieces of at most `size` tokens."""
    out = []
    for row in rows:
        for start in range(0, row["length"], size):
            out.append(piece(row["input_ids"][start : start + size], row["labels"][start : start + size]))
    return out


def wrap(rows: list[Row], size: int) -> list[Row]:
    """Join rows end to end and cut them into pieces of `size` tokens; the last may be shorter."""
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]
    return [piece(ids[start : start + size], labels[start : start + size]) for start in range(0, len(ids), size)]


def piece(ids: list[int], labels: list[int]) -> Row:
    return {"input_ids": ids, "labels": labels, "length": len(ids), "truncated": False}


def pack(rows: list[Row], size: int, strategy: str) -> list[list[Row]]:
    """Return the rows of a window as blocks: "bfd", "bfd_split" or "wrapped". A block of "wrapped" is one row.

    Raises ConfigError where rows would have to be cut that hold more than tokens and their labels.
    """
    if strategy != "bfd":
        for row in rows:
            if not {"input_ids", "labels"} <= set(row) <= SPLITTABLE:
                raise ConfigError(
                    f"packing_strategy: {strategy} cuts rows, which needs rows of input_ids and labels only; "
                    f"this method's rows have {', '.join(row)}. Use bfd"
                )
    if strategy == "wrapped":
        return [[row] for row in wrap(rows, size)]
    if strategy == "bfd_split":
        rows = split(rows, size)
    return [[rows[index] for index in block] for block in best_fit_decreasing([row["length"] for row in rows], size)]
