"""Where the rows of a file are, in bytes and lines, so that any row can be read without those before it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.errors import DataError

if TYPE_CHECKING:
    import numpy as np


BLOCK = 1 << 24  # bytes read at a time when a file is indexed
SAMPLE = 1 << 16  # bytes of each block that a fingerprint reads


def fingerprint(path: Path) -> str:
    """Return a hash of a file's size and content: of all of it up to 1 MiB, of 16 blocks spread over it if it is
    larger.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as file:
        if size <= 16 * SAMPLE:
            digest.update(file.read())
        else:
            for block in range(16):
                file.seek((size - SAMPLE) * block // 15)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start + 1}); save the file as UTF-8"
        ) from error


def check_start(path: Path, label: str | None = None) -> int:
    """Return the bytes to skip at the start (a byte order mark). Raises DataError for a file that is empty or UTF-16.
    `label`: what errors call the file.
    """
    with path.open("rb") as file:
        return skipped(file.read(4), label or str(path))


def skipped(head: bytes, label: str) -> int:
    """Return the bytes of a byte order mark at the head of a file. Raises DataError for one that can't be read."""
    if not head:
        raise DataError(f"{label}: the file is empty")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{label}: the file is UTF-16; save it as UTF-8")
    return 3 if head[:3] == b"\xef\xbb\xbf" else 0


class Spans:
    """The byte ranges of a file's rows, and the line on which each begins."""

    def __init__(self, path: Path, starts: np.ndarray, stops: np.ndarray, lines: np.ndarray, label: str):
        self.path, self.starts, self.stops, self.lines, self.label = path, starts, stops, lines, label
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}  # each worker opens the file itself

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` may be gone at interpreter exit
        if self._handle is not None:
            close(self._handle)

    def where(self, index: int) -> str:
        return f"{self.label}, line {self.lines[index]}"

    def text(self, index: int) -> str:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
        start, stop = int(self.starts[index]), int(self.stops[index])
        data = os.pread(self._handle, stop - start, start)  # no shared position: safe in forked workers
        if len(data) != stop - start:
            raise DataError(f"{self.where(index)}: the file has become shorter since it was opened")
        return decode(data, self.where(index))


def line_spans(path: Path, label: str) -> Spans:
    """Return the lines of a file that aren't blank. `label`: what errors call the file."""
    import numpy as np

    begin = check_start(path, label)
    size = path.stat().st_size
    ends = []
    with path.open("rb") as file:
        base = 0
        while block := file.read(BLOCK):
            ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10).astype(np.int64) + base)
            base += len(block)
    stops = np.concatenate(ends)
    if not len(stops) or stops[-1] != size - 1:
        stops = np.append(stops, size)
    starts = np.concatenate([[begin], stops[:-1] + 1]).astype(np.int64)
    spans = Spans(path, starts, stops, np.arange(1, len(starts) + 1), label)
    short = np.flatnonzero(stops - starts < 16)  # a longer blank line raises when it is read
    blank = [index for index in short if not spans.text(index).strip()]
    if blank:
        keep = np.setdiff1d(np.arange(len(starts)), blank)
        spans = Spans(path, starts[keep], stops[keep], spans.lines[keep], label)
    if not len(spans):
        raise DataError(f"{label}: the file has no rows, only blank lines")
    return spans
