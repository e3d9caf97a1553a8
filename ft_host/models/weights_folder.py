"""The folder that weights are published in, and what writes it.

    FOLDER/version-7/weights-00001.safetensors ...   tensors by name, or what changed: NAME and NAME:indices
    FOLDER/version-7/manifest.json                   written last: what there is, checksums, the version that it is on

A version is written aside and renamed, so that a reader finds all of it or nothing. It holds the whole, or only the
values that changed since the version before, where that is smaller: an update in bfloat16 leaves most values as they
are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ft_host.errors import FtHostError
from ft_host.util.disk import disk_problem

PIECE = 256 << 20  # bytes of a file; one ends with the tensor that takes it past this
MANIFEST = "manifest.json"
INDICES = ":indices"  # behind the name of a tensor of which only some values are there
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a value
MEMORY = Path("/dev/shm")  # of Linux: files in memory
NAME = "ft-host-weights-"  # of folders there
LOCK = "in-use"  # a file that the owner of such a folder holds locked while it lives

Named = tuple[str, torch.Tensor]


@dataclass
class WeightsFolder:
    """The versions in a folder, written by one process. It keeps a copy of the last one in memory, to tell what has
    changed, and so that `whole` needs nobody else."""

    path: Path
    piece: int = PIECE
    version: int | None = None  # the last one that was written whole or as changes; None: none, or one that failed
    snapshot: dict[str, torch.Tensor] = field(default_factory=dict)
    _changes: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None  # indices and values of what changed
    _changed: int = 0  # bytes of `_changes`
    _taken: int | None = None  # the version that they are on
    beside: Path | None = None  # where to write when the memory is full
    _lock: int | None = None  # descriptor of the file that shows that this process lives

    @classmethod
    def made(cls, beside: Path, needed: int) -> WeightsFolder:
        """Return a new folder: in memory (/dev/shm) if there is room for `needed` bytes, else in the folder `beside`.
        What a killed process left in memory is deleted."""
        shutil.rmtree(beside / "weights", ignore_errors=True)
        if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
            return cls(beside / "weights")
        for other in MEMORY.glob(f"{NAME}*/{LOCK}"):
            _delete_if_left(other)
        if shutil.disk_usage(MEMORY).free < needed:
            return cls(beside / "weights")
        folder = cls(Path(tempfile.mkdtemp(prefix=NAME, dir=MEMORY)), beside=beside / "weights")
        folder._lock = os.open(folder.path / f".{LOCK}", os.O_CREAT | os.O_RDWR)
        fcntl.flock(folder._lock, fcntl.LOCK_EX)
        (folder.path / f".{LOCK}").rename(folder.path / LOCK)  # locked when others see it
        return folder

    def begin(self) -> None:
        """Before the tensors of another version are taken."""
        self._taken, self.version = self.version, None
        self._changes, self._changed = {} if self._taken is not None else None, 0

    def take(self, named: Iterable[Named]) -> None:
        """Copy tensors of the version to come."""
        for name, tensor in named:
            new = tensor.detach().to("cpu")
            old = self.snapshot.get(name)
            if old is None:
                self.snapshot[name] = new.clone(memory_format=torch.contiguous_format)
                continue
            if self._changes is not None:
                bits = BITS[new.element_size()]
                differ = new.contiguous().view(-1).view(bits) != old.view(-1).view(bits)
                indices = differ.nonzero().view(-1)
                if len(indices):
                    indices = indices.int() if new.numel() < 2**31 else indices
                    values = new.reshape(-1)[indices]
                    self._changes[name] = (indices, values)
                    self._changed += indices.nbytes + values.nbytes
                if self._changed > self.size:
                    self._changes = None
            old.copy_(new)

    def write(self, version: int) -> Path:
        """Write what was taken since `begin`; return the version's folder. Raises FtHostError where the disk refuses,
        with the reason."""
        changes, base = self._changes, self._taken
        if changes is None:
            base = None
        place = self._write(f"version-{version}", version, base, self._tensors(changes))
        self._changes = None
        self.version = version
        return place

    def publish(self, version: int, pieces: Iterable[list[Named]]) -> Path:
        """Take all pieces, then write them. For one process; see `Publisher`."""
        self.begin()
        for piece in pieces:
            self.take(piece)
        return self.write(version)

    def whole(self) -> Path:
        """Write the last version once more, with all its values: for a reader that has none, or missed one."""
        assert self.version is not None, "a version was written"
        return self._write(f"version-{self.version}-whole", self.version, None, self._tensors(None))

    def forget(self, version: int) -> None:
        """Delete the versions before this one, which all readers have."""
        for place in self.path.glob("version-*"):
            if int(place.name.split("-")[1]) < version:
                shutil.rmtree(place, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def size(self) -> int:
        """Bytes of a whole version."""
        return sum(tensor.nbytes for tensor in self.snapshot.values())

    def _tensors(self, changes: dict[str, tuple[torch.Tensor, torch.Tensor]] | None) -> list[dict[str, torch.Tensor]]:
        """Return what to write, by the tensor that belongs together."""
        if changes is None:
            return [{name: tensor} for name, tensor in self.snapshot.items()]
        return [{name: values, name + INDICES: indices} for name, (indices, values) in changes.items()]

    def _write(self, name: str, version: int, base: int | None, parts: list[dict[str, torch.Tensor]]) -> Path:
        place, aside = self.path / name, self.path / f".{name}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            files = {}
            for index, tensors in enumerate(_grouped(parts, self.piece)):
                file = f"weights-{index + 1:05}.safetensors"
                files[file] = _write_file(aside / file, tensors)
            manifest = {
                "format": 1,
                "version": version,
                "base": base,
                "tensors": {
                    name: {"dtype": str(each.dtype).removeprefix("torch."), "shape": list(each.shape)}
                    for name, each in self.snapshot.items()
                },
                "files": files,
            }
            (aside / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            aside.rename(place)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)  # a half one holds space that may be what is lacking
            if error.errno == errno.ENOSPC and self.beside is not None:  # others have filled the memory meanwhile
                self.remove()
                self.path, self.beside = self.beside, None
                return self._write(name, version, base, parts)
            why = disk_problem([error], self.path) or error
            raise FtHostError(f"the weights of step {version} could not be written for the sampler: {why}") from error
        return place


def _grouped(parts: list[dict[str, torch.Tensor]], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    held: dict[str, torch.Tensor] = {}
    size = 0
    for part in parts:
        held |= part
        size += sum(tensor.nbytes for tensor in part.values())
        if size > limit:
            yield held
            held, size = {}, 0
    if held:
        yield held


def _write_file(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    from safetensors.torch import save

    data = save(tensors)
    path.write_bytes(data)
    return {"bytes": len(data), "checksum": checksum(data)}


def checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _delete_if_left(lock: Path) -> None:
    """Delete the folder of a lock that nobody holds any more."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:  # another user's, or gone
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
