"""Compressed files of rows: read as the file inside is, so that a row is named by its line and an archive that was cut
is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ft_host.data.places import PACKED
from ft_host.data.spans import fingerprint
from ft_host.errors import DataError
from ft_host.util.cache import cache_folder

BLOCK = 1 << 22  # bytes unpacked at a time


def is_packed(path: Path) -> bool:
    return path.suffix.lower() in PACKED


def opened(path: Path) -> IO[bytes] | Any:
    """Open a file for reading what is inside it."""
    kind = path.suffix.lower()
    if kind == ".gz":
        import gzip

        return gzip.open(path, "rb")
    if kind == ".bz2":
        import bz2

        return bz2.open(path, "rb")
    if kind == ".xz":
        import lzma

        return lzma.open(path, "rb")
    if kind == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb")


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, unpacked. Raises DataError for an archive that is cut, or is none."""
    import lzma

    try:
        with opened(path) as file:
            while block := file.read(BLOCK):
                yield block
    except EOFError as error:
        raise DataError(f"{path}: the compressed file ends too early: it was cut; copy it again") from error
    except (zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path}: {error.strerror}") from error
        cut = "runcated" in str(error)
        reason = "ends too early: it was cut; copy it again" if cut else f"can't be unpacked: {error}"
        raise DataError(f"{path}: the compressed file {reason}") from error


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, compressed or not, with their ends. A file is read no further than it is used."""
    if not is_packed(path):
        with path.open("rb") as file:
            yield from file
        return
    rest = b""
    for block in blocks(path):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def unpacked(path: Path) -> Path:
    """Return a file with the content of a compressed one, which any row can be read from; the file itself if it isn't
    compressed. It is kept in the cache, under a name that another content, time or place changes.

    Raises DataError for an archive that can't be unpacked, or a cache that can't be written.
    """
    if not is_packed(path):
        return path
    known = path.stat()
    name = hashlib.blake2b(
        repr((str(path.resolve()), known.st_size, known.st_mtime_ns, fingerprint(path))).encode(), digest_size=12
    ).hexdigest()
    kept = cache_folder() / "data" / name
    if kept.is_file():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, begun = tempfile.mkstemp(dir=kept.parent, prefix=f".{name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                for block in blocks(path):
                    file.write(block)
            os.replace(begun, kept)
        except BaseException:
            os.unlink(begun)
            raise
    except OSError as error:
        raise DataError(
            f"{path}: can't be unpacked into {kept.parent}: {error.strerror}; FT_HOST_CACHE names another folder"
        ) from error
    return kept
