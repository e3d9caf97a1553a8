"""What a disk did to a run: recognised in any error, however libraries wrap it, and said in a sentence. Imports no
torch."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# errno -> what happened, and what helps
WORDS = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or ask for more"),
    errno.EROFS: ("the file system is read-only", "Mount it writable, or set output_dir to another one"),
    errno.EACCES: ("permission is denied", "Change its owner or its mode"),
    errno.EPERM: ("permission is denied", "Change its owner or its mode"),
    errno.EIO: ("the disk reports an input/output error", "Look at the disk (dmesg)"),
    errno.ESTALE: ("the network file system has lost the file", "Mount it again"),
    errno.ENODEV: ("the device is gone", "Mount it again"),
    errno.ENXIO: ("the device is gone", "Mount it again"),
    errno.EFBIG: ("a file would be larger than is allowed", "Raise the limit (ulimit -f)"),
    errno.EMFILE: ("too many files are open", "Raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open", "Raise the limit (ulimit -n)"),
}
# What libraries write in place of an errno. safetensors: "I/O error: No space left on device (os error 28)".
MARKS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "Input/output error": errno.EIO,
    "Stale file handle": errno.ESTALE,
    "File too large": errno.EFBIG,
    "Too many open files": errno.EMFILE,
}
# What torch, safetensors and pickle say of a file that they couldn't write, without the reason.
WITHOUT_REASON = (
    "inline_container",
    "PytorchStreamWriter",
    "unexpected pos",
    "I/O error",
    "write error",
    "failed writing",
    "failed finding central directory",
    "No such file or directory",
    "Not a directory",
)
TRIED = 1 << 20  # bytes that are written to find the reason


@dataclass(frozen=True)
class DiskProblem:
    """What happened, where, and what helps."""

    what: str
    place: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} ({self.place}). {self.remedy}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [other for other in (each.__cause__, each.__context__) if other is not None]


def disk_problem(errors: Iterable[BaseException], folder: Path) -> DiskProblem | None:
    """What a disk had to do with errors of writing below `folder`; None: nothing."""
    every = [each for error in errors for each in chain(error)]
    of_system = [each for each in every if isinstance(each, OSError)]
    for each in of_system:
        if each.errno in WORDS:
            return _said(each.errno, each.filename or folder)
    texts = [str(each) for each in every]
    for mark, number in MARKS.items():
        if any(mark in text for text in texts):
            return _said(number, folder)
    gone = any(each.errno in (errno.ENOENT, errno.ENOTDIR) for each in of_system)
    if gone or any(mark in text for text in texts for mark in WITHOUT_REASON):
        return missing(folder) or (None if gone else _tried(folder))
    return None


def missing(folder: Path) -> DiskProblem | None:
    """Say that a folder isn't there any more; None where it is."""
    if folder.is_dir():
        return None
    if folder.exists():
        return DiskProblem("the run's folder is gone: a file has taken its place", str(folder), "Put it back")
    return DiskProblem(
        "the run's folder is gone: it was removed, renamed or unmounted",
        str(folder),
        "If it is elsewhere now, go on with `ft-host train --resume` and that path",
    )


def _said(number: int, place: str | bytes | Path) -> DiskProblem:
    what, remedy = WORDS[number]
    return DiskProblem(what, place.decode() if isinstance(place, bytes) else str(place), remedy)


def _tried(folder: Path) -> DiskProblem:
    """Find the reason by writing a file, which is removed again."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    trial = there / ".written-to-find-out.tmp"
    try:
        trial.write_bytes(bytes(TRIED))
    except OSError as error:
        if error.errno in WORDS:
            return _said(error.errno, folder)
    finally:
        trial.unlink(missing_ok=True)
    free = shutil.disk_usage(there).free / 2**20
    return DiskProblem(f"a file could not be written; {free:,.0f} MB are free", str(folder), "Look at the disk (dmesg)")
