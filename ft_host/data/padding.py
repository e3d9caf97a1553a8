"""Padding of rows that are tokens already: their attention mask says what isn't text."""

from __future__ import annotations

from typing import Any

from ft_host.data.messages import kind_of
from ft_host.errors import RowError
from ft_host.types import Row


def without_padding(columns: Row, row: Row, mask: str = "attention_mask") -> Row:
    """Return columns of tokens, and of what stands beside each token, without those whose `mask` in the row is 0.

    Padding may be on both sides. Raises RowError for a mask with other values, with another length, or with a hole.
    """
    if row.get(mask) is None:
        return columns
    values = row[mask]
    if not isinstance(values, list) or any(value not in (0, 1) for value in values):
        raise RowError(f"column {mask}: found {kind_of(values)}, expected a list of 0 and 1", mask)
    for name, column in columns.items():
        if isinstance(column, list) and len(column) != len(values):
            raise RowError(f"column {mask}: {len(values)} values for {len(column)} of {name}", mask)
    kept = [index for index, value in enumerate(values) if value]
    if not kept:
        raise RowError(f"column {mask}: masks every token", mask)
    first, last = kept[0], kept[-1] + 1
    if last - first != len(kept):
        hole = next(index for index in range(first, last) if not values[index])
        raise RowError(
            f"{mask}[{hole}]: a 0 between tokens with 1; expected padding before or after the tokens only. Several "
            "texts in one row are rows of their own here: `packing` puts them together",
            mask,
        )
    return {name: cut(column, first, last) for name, column in columns.items()}


def cut(column: Any, first: int, last: int) -> Any:
    return column[first:last] if isinstance(column, list) else column
