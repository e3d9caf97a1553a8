"""Local files of rows, read lazily: an index of where each row begins, then one row at a time.

JSON lines and CSV are not converted to Arrow: a bad row in the middle raises when it is used and is named by its line,
and rows may have different keys. A table has `columns`, `fingerprint`, a length, `read(index)` and `where(index)`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft_host.data.arrow_nulls import cleaned
from ft_host.data.json_rows import not_rows, once, parse, parse_object
from ft_host.data.packed import lines_of, unpacked
from ft_host.data.places import suffix_of
from ft_host.data.spans import Spans, check_start, decode, fingerprint, line_spans, skipped
from ft_host.errors import DataError
from ft_host.types import Row

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BETWEEN = re.compile(r"[ \t\r\n,]*")  # rows of a JSON array
ROWS = "expected JSON lines (one object per line) or an array of objects"


# ---------------------------------------------------------------- JSON


class JsonLines:
    """A file with one JSON object per line."""

    def __init__(self, path: Path):
        self.spans = line_spans(unpacked(path), str(path))
        first = self.read(0)
        found = not_rows(first) if len(self.spans) == 1 else None
        if found:
            raise DataError(f"{path}: found {found}, {ROWS}")
        self.columns = list(first)
        self.fingerprint = fingerprint(path)

    def __len__(self) -> int:
        return len(self.spans)

    def where(self, index: int) -> str:
        return self.spans.where(index)

    def read(self, index: int) -> Row:
        return parse_object(self.spans.text(index), self.where(index))


class JsonArray:
    """A file with one JSON array of objects. Read as a whole: such a file can't be read in parts."""

    def __init__(self, path: Path):
        self.path = path
        content = unpacked(path)
        text = decode(content.read_bytes()[check_start(content, str(path)) :], str(path))
        try:
            self.rows = parse(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise next(refused_rows(text, path), DataError(f"{path}: {error}")) from error
        if not isinstance(self.rows, list) or not self.rows:
            kind = "an empty list" if self.rows == [] else f"one {type(self.rows).__name__}"
            raise DataError(f"{path}: found {not_rows(self.rows) or kind}, {ROWS}")
        self.columns = list(self.read(0))
        self.fingerprint = fingerprint(path)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def read(self, index: int) -> Row:
        row = self.rows[index]
        if not isinstance(row, dict):
            raise DataError(f"{self.where(index)}: found {str(row)[:40]!r}, expected an object {{column: value}}")
        return row


def refused_rows(text: str, path: Path) -> Iterator[DataError]:
    """Yield an error for each row of a JSON array that `parse` refuses, with its place; the text is JSON."""
    decoder = json.JSONDecoder(object_pairs_hook=once)
    at, index = text.find("[") + 1, 0
    while (at := BETWEEN.match(text, at).end()) < len(text) and text[at] != "]":
        start, where = at, f"{path}, row {index}, line {text.count(chr(10), 0, at) + 1}"
        index += 1
        try:
            _, at = decoder.raw_decode(text, at)
            parse(text[start:at])
        except (ValueError, RecursionError) as error:
            yield DataError(f"{where}: {error}")
            return


def is_array(path: Path) -> bool:
    """Return whether a JSON file must be read as a whole: it begins with a bracket, or its first line is
    only a brace.
    """
    lines = (line.removeprefix(b"\xef\xbb\xbf") for line in lines_of(path))
    first = next((line for line in lines if line.strip()), b"")
    return first.lstrip()[:1] == b"[" or first.strip() == b"{"


def json_line_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of JSON lines, without an index of the file."""
    for number, line in enumerate(lines_of(path), 1):
        content = line[skipped(line, str(path)) :] if number == 1 else line
        if content.strip():
            where = f"{path}, line {number}"
            yield where, parse_object(decode(content, where), where)


# ---------------------------------------------------------------- CSV


def csv_records(path: Path, label: str) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, first line) of each record. A record continues over line ends while a quote is open."""
    position = start = check_start(path, label)
    first, open_quote = 1, False
    with path.open("rb") as file:
        file.seek(start)
        for number, line in enumerate(file, 1):
            position += len(line)
            open_quote ^= line.count(b'"') % 2 == 1
            if open_quote:
                continue
            if line.strip() or start + len(line) != position:
                yield start, position, first
            start, first = position, number + 1
    if open_quote:
        raise DataError(f"{label}, line {first}: the record that begins here has an unclosed quote")


def parse_record(text: str, delimiter: str, where: str) -> list[str]:
    csv.field_size_limit(2**31 - 1)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{where}: not CSV: {error}") from error
    if len(records) != 1:
        raise DataError(f"{where}: a quote in the middle of a field; double it and put the field in quotes")
    return records[0]


class CsvFile:
    """A CSV file (.tsv: tab-separated) whose first record names the columns. All values are text, as in the file."""

    def __init__(self, path: Path):
        import numpy as np

        self.delimiter = DELIMITERS[suffix_of(path)]
        content = unpacked(path)
        records = np.array(list(csv_records(content, str(path))), dtype=np.int64)
        if len(records) < 2:
            raise DataError(f"{path}: the file has no rows, only the names of columns")
        self.spans = Spans(content, records[:, 0], records[:, 1], records[:, 2], str(path))
        self.columns = parse_record(self.spans.text(0), self.delimiter, self.spans.where(0))
        double = {name for name in self.columns if self.columns.count(name) > 1}
        if double:
            raise DataError(f"{path}, line 1: several columns are named {', '.join(sorted(double))}")
        self.fingerprint = fingerprint(path)

    def __len__(self) -> int:
        return len(self.spans) - 1

    def where(self, index: int) -> str:
        return self.spans.where(index + 1)

    def read(self, index: int) -> Row:
        fields = parse_record(self.spans.text(index + 1), self.delimiter, self.where(index))
        if len(fields) != len(self.columns):
            raise DataError(
                f"{self.where(index)}: found {len(fields)} fields, expected {len(self.columns)}: "
                f"{', '.join(self.columns)}"
            )
        return dict(zip(self.columns, fields, strict=True))


# ---------------------------------------------------------------- several files, and tables of `datasets`


class Joined:
    """Several tables, one after the other."""

    def __init__(self, tables: list[Any]):
        self.tables = tables
        self.stops = [sum(len(table) for table in tables[: index + 1]) for index in range(len(tables))]
        self.columns = list(dict.fromkeys(name for table in tables for name in table.columns))
        text = " ".join(table.fingerprint for table in tables)
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self.stops[-1]

    def place(self, index: int) -> tuple[Any, int]:
        import bisect

        number = bisect.bisect_right(self.stops, index)
        return self.tables[number], index - (self.stops[number - 1] if number else 0)

    def where(self, index: int) -> str:
        table, at = self.place(index)
        return table.where(at)

    def read(self, index: int) -> Row:
        table, at = self.place(index)
        return table.read(at)


class Arrow:
    """A `datasets.Dataset`: memory-mapped, so that rows are read from disk when used. `renames`: of its columns."""

    def __init__(self, dataset: Any, label: str, renames: dict[str, str]):
        self.renames = renames
        self.dataset = dataset.with_format(None)
        self.label = label
        self.columns = list(dataset.column_names)
        self.fingerprint = dataset._fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def where(self, index: int) -> str:
        return f"{self.label}, row {index}"

    def read(self, index: int) -> Row:
        return cleaned(self.dataset[index], self.dataset.features, self.renames)
