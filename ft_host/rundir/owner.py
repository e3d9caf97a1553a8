"""Who writes into a run's folder: one process at a time. Imports no torch.

`owner.json` names the main process of a run that is going on: host, boot, pid, and the time at which the process began,
so that another process with the same pid isn't taken for it. The file is locked (flock) as long as that process lives;
the lock decides between two that begin at once, the content tells people and readers who it is. Both end with the run.

A killed run leaves the file behind. The next one on the same host takes it over. On another host nobody can tell
whether the process lives, so the user must say.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ft_host.errors import UsageError
from ft_host.util.text import now

FILE = "owner.json"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without locks


class Owner:
    """This process as the owner of a run's folder."""

    def __init__(self, folder: Path, handle: int, taken_from: str | None):
        self.folder = folder
        self.taken_from = taken_from  # a sentence about a killed owner before it
        self._handle = handle
        _owned.add(self)

    @classmethod
    def take(cls, folder: Path, *, take_over: bool = False) -> Owner:
        """Become the owner of a folder, which must exist. `take_over`: even of an owner on another host.

        Raises UsageError, which names the owner, where another process is or may be writing into it, and OSError.
        """
        path = folder / FILE
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                locked = _lock(handle)
                if locked is False:
                    raise UsageError(_goes_on(folder, _named(handle)))
                before = _parse(os.pread(handle, 1 << 16, 0))
                if not _is_still(path, handle):
                    continue  # its owner ended and removed it meanwhile
                taken_from = _check(folder, before, locked=bool(locked), take_over=take_over)
                written = json.dumps(_this_process() | {"locked": bool(locked)}, indent=1).encode()
                os.pwrite(handle, written, 0)
                os.ftruncate(handle, len(written))
                os.fsync(handle)
                owner = cls(folder, os.dup(handle), taken_from)
                os.set_inheritable(owner._handle, False)
                return owner
            finally:
                os.close(handle)

    def release(self, *, ended: bool) -> None:
        """Give the folder free. The file stays where the run has not `ended` well enough to say so in run.json: readers
        then see that its process is gone."""
        if self._handle < 0:
            return
        if ended and _is_still(self.folder / FILE, self._handle):
            with contextlib.suppress(OSError):  # a disk that is gone or read-only: the process ends all the same
                (self.folder / FILE).unlink()
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # also for a child that is just being forked
        self._close()

    def _close(self) -> None:
        _owned.discard(self)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_owned: set[Owner] = set()


def _disown() -> None:
    """In a forked child: it must not hold a lock when its parent is gone."""
    for owner in list(_owned):
        owner._close()


os.register_at_fork(after_in_child=_disown)


def state_of(folder: Path) -> str | None:
    """Return "alive" or "dead" of the owner of a run; None where there is none, or it is on another host. Writes
    nothing and takes no lock."""
    try:
        owner = _parse((folder / FILE).read_bytes())
    except OSError:
        return None
    if not owner or owner.get("host") != socket.gethostname():
        return None
    return "alive" if _lives(owner) else "dead"


def refuse_if_owned(folder: Path) -> None:
    """Raise UsageError where the run in a folder goes on, before anything heavy is imported. It may still begin
    afterwards: only `Owner.take` is sure."""
    if state_of(folder) == "alive":
        raise UsageError(_goes_on(folder, _parse((folder / FILE).read_bytes())))


# ---------------------------------------------------------------- parts


def _lock(handle: int) -> bool | None:
    """Lock the file. False: another process holds the lock; None: the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _named(handle: int) -> dict[str, Any]:
    """Return the owner that holds the lock. One that has just taken it needs a moment to write its name."""
    for _ in range(40):
        owner = _parse(os.pread(handle, 1 << 16, 0))
        if owner and (owner["host"] != socket.gethostname() or _lives(owner)):
            return owner
        time.sleep(0.05)
    return {}


def _is_still(path: Path, handle: int) -> bool:
    """Return whether the open file is the one that the path names."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _check(folder: Path, owner: dict[str, Any], *, locked: bool, take_over: bool) -> str | None:
    """Return a sentence about the owner before, None where there was none. Raises UsageError where it may live."""
    if not owner:
        return None
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    if owner.get("host") != socket.gethostname():
        if not take_over:
            raise UsageError(
                f"{folder} belongs to {who}, since {owner.get('since')}, and from this host nobody can tell whether it "
                "still runs. Look there; if it has ended, `ft-host train --resume "
                f"{folder} --take-over` goes on"
            )
        return f"taken over from {who}, as --take-over says"
    # Where locks work, its owner would hold one: this file was left behind, or copied with the folder.
    if not (locked and owner.get("locked")) and _lives(owner):
        raise UsageError(_goes_on(folder, owner))
    return f"{who}, which ran it since {owner.get('since')}, was killed; this run takes its place"


def _goes_on(folder: Path, owner: dict[str, Any]) -> str:
    since = f" since {owner['since']}" if owner.get("since") else ""
    who = (
        f"process {owner['pid']} on {owner.get('host')} trains in it{since}" if owner.get("pid") else "it has an owner"
    )
    return f"{folder} is in use: {who}. Wait for it or stop it (a SIGTERM saves its state), then resume"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:  # empty, or cut off by a crash: nobody
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) and "host" in owner else {}


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "began": _began(pid), "since": now()}


def _lives(owner: dict[str, Any]) -> bool:
    """Return whether the process of this host that an owner names is still that process."""
    return owner.get("boot") == _boot() and owner.get("began") is not None and owner["began"] == _began(owner["pid"])


def _boot() -> str:
    """Return an id of the time since this machine was started."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round(psutil.boot_time()))


def _began(pid: int) -> int | None:
    """Return when a process began, in a unit of its system; None where it is gone, or only waits to be collected."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else int(fields[19])  # clock ticks after the boot: no change of the clock
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time())
    except psutil.NoSuchProcess:
        return None
