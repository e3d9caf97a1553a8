"""What data holds, as a digest: whether a resumed run has the rows that it began with.

Up to 8 MiB every row is read, and its columns are sorted: a touched file, blank lines, another order of columns or
another path make no difference; an edited row, another order of rows or other rows do, and can be told apart. Of larger
files the bytes are read: all of them, or of a stream over 1 GiB blocks spread over it. Data of the hub that is streamed
is known by its commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ft_host.data import files
from ft_host.data.sources import Source, Stream
from ft_host.errors import DataError
from ft_host.types import Row

SMALL = 1 << 23  # bytes of a source whose rows are all read: a second's work
LARGE = 1 << 30  # bytes of a stream over which only blocks of its files are read
BLOCK, BLOCKS = 1 << 16, 1024
SAMPLES = 32  # rows whose own digests are kept, to say how many differ
BLANK = b" \t\r\n"


def content_of(source: Any) -> dict[str, Any]:
    """Return the digest of a source, a mixture or several evaluation sets, as run.json holds it.

    `of` says what was read: "rows", "bytes", "commit", "address" of what has no commit, or "sources" (a list of them).
    `ordered` is the digest.
    """
    if source.sources != [source]:
        return {"of": "sources", "sources": [content_of(each) for each in source.sources]}
    paths, size = _places(source)
    if size is not None and size <= SMALL:
        return _of_rows(_rows(source), _count(source))
    if size is None:
        known = all("@" in place for place in source.origin)  # hf://datasets/NAME@COMMIT/FILE
        return {"of": "commit" if known else "address", "ordered": _hex(repr(sorted(source.origin)).encode())}
    whole = isinstance(source, Source) or size <= LARGE
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(_of_file(path, whole))
    return {"of": "bytes", "ordered": digest.hexdigest()}


def _places(source: Source | Stream) -> tuple[list[Path], int | None]:
    """Return the files of a source and their size; None where they aren't on this machine."""
    if isinstance(source, Source):
        paths = list(chain.from_iterable(map(_files_of, _tables(source.table))))
        arrow = sum(table.dataset.data.nbytes for table in _tables(source.table) if isinstance(table, files.Arrow))
        return paths, max(arrow, sum(path.stat().st_size for path in paths))
    if any("://" in place for place in source.origin):
        return [], None
    paths = [Path(place) for place in source.origin]
    return paths, sum(path.stat().st_size for path in paths)


def _tables(table: Any) -> list[Any]:
    return table.tables if isinstance(table, files.Joined) else [table]


def _files_of(table: Any) -> list[Path]:
    if isinstance(table, files.Arrow):
        return [Path(file["filename"]) for file in table.dataset.cache_files]
    return [table.path if isinstance(table, files.JsonArray) else table.spans.path]


def _count(source: Source | Stream) -> int:
    return source.num_rows if isinstance(source, Source) else sum(1 for _ in source.open(0))


def _rows(source: Source | Stream) -> Iterator[Row | str]:
    """Yield the rows as they are written; for one that can't be read, what is wrong with it."""
    if isinstance(source, Stream):
        rows = source.open(0)
        while True:
            try:
                yield next(rows)[1]
            except StopIteration:
                return
            except DataError as error:  # a stream ends there
                yield str(error)
                return
    if isinstance(source.table, files.Arrow):  # ten times as fast as row by row
        for batch in source.table.dataset.select(source.rows).iter(batch_size=1000):
            yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
        return
    for index in source.rows:
        try:
            yield source.table.read(index)
        except DataError as error:
            yield str(error).removeprefix(source.table.where(index))


def _of_rows(rows: Iterable[Row | str], count: int) -> dict[str, Any]:
    ordered, unordered, sample = hashlib.blake2b(digest_size=16), 0, []
    chosen = {number * count // SAMPLES for number in range(SAMPLES)}
    for index, row in enumerate(rows):
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), default=str)
        mark = hashlib.blake2b(text.encode(), digest_size=16).digest()
        ordered.update(mark)
        unordered = (unordered + int.from_bytes(mark)) % (1 << 128)
        if index in chosen:
            sample.append(mark[:4].hex())
    return {"of": "rows", "ordered": ordered.hexdigest(), "unordered": f"{unordered:032x}", "sample": sample}


def _of_file(path: Path, whole: bool) -> bytes:
    """Return the digest of a file's bytes, without blanks at its end."""
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    with path.open("rb") as file:
        if not whole and size > BLOCK * BLOCKS:
            digest.update(str(size).encode())
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
            return digest.digest()
        tail = b""
        while block := file.read(1 << 22):
            block = tail + block
            kept = block.rstrip(BLANK)
            digest.update(kept)
            tail = block[len(kept) :]
    return digest.digest()


def _hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
