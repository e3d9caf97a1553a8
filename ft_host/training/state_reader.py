"""Reads `state/` of a checkpoint without executing anything in it. Run folders are shared, and pickles are programs.

torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle, reads it with `pickle.load`, and reads values
that aren't tensors with `torch.load(weights_only=False)`. Here the index is read by an unpickler that knows the
classes of an index and no others, and values by torch's own that knows tensors and plain values.
"""

from __future__ import annotations

import contextlib
import enum
import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from ft_host.errors import UsageError

# What an index may hold, by module. Making an object of one of these does nothing but hold its parts.
KNOWN = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "collections": ("OrderedDict",),
    "builtins": ("set", "frozenset"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "PurePath", "PureWindowsPath", "WindowsPath"),
    "pathlib._local": ("Path", "PosixPath", "PurePosixPath", "PurePath", "PureWindowsPath", "WindowsPath"),
}


def _member(kind: Any, name: str) -> enum.Enum:
    """A member of an enumeration, which Python 3.11.2 pickles as `getattr(kind, name)`."""
    if not isinstance(kind, enum.EnumType) or name not in kind.__members__:
        raise pickle.UnpicklingError(f"getattr of {kind!r} and {name!r} is none of the members of an index")
    return kind[name]


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is none of the classes of an index")
        return super().find_class(module, name)


def refused(place: Path, what: object) -> UsageError:
    return UsageError(
        f"{place}: {what}. Nothing of it was executed. It isn't what ft-host writes: the folder has been changed by"
        " someone else, or the optimizer keeps objects of its own classes, which a checkpoint can't bring back"
    )


def read_index(file: BinaryIO, place: Path) -> Metadata:
    """Return the index that a file holds. Raises UsageError for one that holds anything else; nothing is executed."""
    try:
        index = _IndexUnpickler(file).load()
    except Exception as error:  # a pickle may raise anything: it is a program, of which we know a few words
        raise refused(place, error) from error
    if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
        raise refused(place, f"found {type(index).__name__}, expected the index of a checkpoint")
    for info in index.storage_data.values():
        name = info.relative_path
        if not isinstance(name, str) or Path(name).name != name:
            raise refused(place, f"it names the file {name!r}, which is not beside it")
    return index


class StateReader(FileSystemReader):
    """As torch's, with an index that is only read. Raises UsageError at once where it isn't one: torch would print a
    traceback and go on to look for another index."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        place = folder / ".metadata"
        with place.open("rb") as file:
            self.index = read_index(file, place)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.index.storage_meta is None:
            self.index.storage_meta = StorageMeta()
        self.index.storage_meta.load_id = self.load_id
        return self.index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """As torch's, which reads tensors with `weights_only=True`; what that refuses is named by its file."""
        try:
            return super().read_data(plan, planner)
        except pickle.UnpicklingError as error:
            files = {self.storage_data[item.storage_index].relative_path for item in plan.items}
            raise refused(Path(self.path) / " or ".join(sorted(files)), _reason(error)) from error


class StatePlanner(DefaultLoadPlanner):
    """As torch's, with values that aren't tensors read as plain values only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            plain = torch.load(value, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:  # RuntimeError: an archive with a program
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn}: {_reason(error)}") from error
        again = io.BytesIO()
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)  # which reads pickles, so that it gets one of ours


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise a refusal as itself where torch has wrapped it, on whatever rank it was."""
    try:
        yield
    except CheckpointException as error:
        for problem, _ in error.failures.values():
            if isinstance(problem, UsageError):
                raise problem from error
        raise


def _reason(error: Exception) -> str:
    """Return which class torch has refused; its message advises to trust the file."""
    found = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
    return f"it holds {found[1]}, which is no plain value" if found else str(error).splitlines()[0]
