"""Rows with a place: what the rest of the package reads, for any file or data set.

A `Source` knows its length and reads any row; a `Stream` is read from its start. Both give the place of each row for
messages, and rename columns first. `load` opens them, `mixture` mixes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ft_host.data.order import permutation
from ft_host.errors import DataError, FtHostError
from ft_host.types import Row
from ft_host.util.memory import ran_out
from ft_host.util.text import nearest


class Source:
    """A known number of rows, each of which can be read alone: the rows of a table whose index is in `rows`."""

    def __init__(self, table: Any, renames: dict[str, str], label: str, split: str, rows: range):
        self.table, self.label, self.split, self.rows = table, label, split, rows
        self.renames = check_renames(renames, table.columns, label)
        self.columns = [self.renames.get(name, name) for name in table.columns]
        self.fingerprint = digest(table.fingerprint, rows, sorted(self.renames.items()))
        self.files: list[str] = []  # those that were chosen, where the label is a folder or a pattern
        self.left_out: list[str] = []  # what lies beside them
        self.revision: str | None = None  # of a hub data set, as it was asked for

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def sources(self) -> list[Source]:
        """Itself, as the only one: a mixture has several."""
        return [self]

    def describe(self) -> dict[str, Any]:
        return {
            "path": self.label,
            "split": self.split,
            "rows": self.num_rows,
            "fingerprint": self.fingerprint,
            "columns": self.columns,
            **chosen(self),
        }

    def where(self, index: int) -> str:
        return self.table.where(self.rows[index])

    def read(self, index: int) -> Row:
        """Return the row. Raises DataError that names file and line."""
        try:
            row = self.table.read(self.rows[index])
        except Exception as error:
            if is_known(error):
                raise
            raise unreadable(error, self.where(index)) from error
        return rename(row, self.renames)

    def order(self, seed: int, epoch: int, shuffled: bool) -> Callable[[int], int]:
        """Return a function from the position in an epoch to the index of its row."""
        return permutation(self.num_rows, seed, epoch) if shuffled else range(self.num_rows).__getitem__


class Stream:
    """Rows that are read in order. `open(skip)` yields (where, row) from row `skip` on; it must be picklable."""

    num_rows = None

    def __init__(
        self,
        open: Callable[[int], Iterator[tuple[str, Row]]],
        renames: dict[str, str],
        label: str,
        split: str,
        key: str,
        origin: list[str],
    ):
        self.open, self.label, self.split = open, label, split
        self.origin = origin  # its files: paths, or addresses, which of the hub have the commit
        first = next(iter(open(0)), None)
        if first is None:
            raise DataError(f"{label}: there are no rows")
        self.renames = check_renames(renames, list(first[1]), label)
        self.columns = [self.renames.get(name, name) for name in first[1]]
        self.fingerprint = digest(key, sorted(self.renames.items()))
        self.files: list[str] = []
        self.left_out: list[str] = []
        self.revision: str | None = None

    def describe(self) -> dict[str, Any]:
        return {
            "path": self.label,
            "split": self.split,
            "rows": None,
            "fingerprint": self.fingerprint,
            "columns": self.columns,
            **chosen(self),
        }

    @property
    def sources(self) -> list[Stream]:
        """Itself, as the only one: a mixture has several."""
        return [self]

    def stream(self, skip: int = 0) -> Iterator[tuple[str, Row]]:
        """Yield (where, row) in order, from row `skip` on. Raises DataError that names file and line."""
        rows, last = self.open(skip), f"its row {skip}" if skip else "its start"
        while True:
            try:
                item = next(rows, None)
            except Exception as error:
                if is_known(error):
                    raise
                raise unreadable(error, f"{self.label}, after {last}") from error
            if item is None:
                return
            last, row = item
            yield last, rename(row, self.renames)


def is_known(error: Exception) -> bool:
    """Return whether an error of reading a row says itself what it is: the host's own, and that of memory."""
    return isinstance(error, FtHostError) or ran_out(error)


def unreadable(error: Exception, where: str) -> DataError:
    return DataError(f"{where}: can't be read: {type(error).__name__}: {error}")


def chosen(source: Source | Stream) -> dict[str, Any]:
    """Return what run.json says of a source that its label doesn't: files of a folder or pattern, a hub's revision."""
    named = {"files": source.files, "left_out": source.left_out, "revision": source.revision}
    return {name: value for name, value in named.items() if value}


def notes_of(source: Any) -> list[str]:
    """Return a sentence for each source whose folder or pattern holds files that aren't read."""
    return [
        f"{each.label}: read {some(each.files)}; left out {some(each.left_out)}"
        for each in source.sources
        if each.left_out
    ]


def some(paths: list[str]) -> str:
    names = [Path(path).name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def digest(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def rename(row: Row, renames: dict[str, str]) -> Row:
    return {renames.get(name, name): value for name, value in row.items()} if renames else row


def check_renames(renames: dict[str, str], columns: list[str], label: str) -> dict[str, str]:
    """Return the renames that apply. A rename whose old column is absent and whose new one exists counts as done."""
    out = {}
    for theirs, ours in renames.items():
        if theirs in columns:
            out[theirs] = ours
        elif ours not in columns:
            raise DataError(
                f"dataset_columns: {label} has no column {theirs}{nearest(theirs, columns)}; its columns are "
                f"{', '.join(columns)}"
            )
    result = [out.get(name, name) for name in columns]
    double = sorted({name for name in result if result.count(name) > 1})
    if double:
        raise DataError(f"dataset_columns: {label} would have two columns {double[0]}; rename the other one too")
    return out
