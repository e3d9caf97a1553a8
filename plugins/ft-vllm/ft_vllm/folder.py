"""The trainer's side of `transfer: folder`: weights as files in a folder that the servers see too.

Each version is a folder of its own, `version-N`, written under another name first: safetensors of about 256 MB each,
and `manifest.json` with their checksums. A version is whole, or has of each tensor only the values that have changed
since the version before (`base`); a server that hasn't that one says so, and is given the whole. What is in the files
is described in published.py, which reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from ft_host.api import FtHostError
from ft_vllm.weights import PIECE, Named, bounds_of

MOST = 0.5  # share of a tensor's bytes that its changes may take; it is written whole above that


class Folder:
    """`dtype`: what the servers compute in, if known: wider matrices are rounded to it here, as they would be there.

    Holds a copy of the weights in main memory, which the next version is compared with.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None):
        self.folder, self.dtype = folder, dtype
        self.held: dict[str, torch.Tensor] = {}
        self.version: int | None = None  # of `held`

    def take(self, pieces: Iterable[list[Named]], version: int) -> Path:
        """Write a version, and return its folder. Raises FtHostError where it can't be written."""
        base = self.version
        writing = self._begin(version, "changed" if base is not None else "whole")
        files: dict[str, str] = {}
        for piece in pieces:
            part: dict[str, torch.Tensor] = {}
            for name, tensor in piece:
                new = self._rounded(tensor.detach()).to("cpu", copy=True).contiguous()
                part |= {name: new} if base is None else changes(name, self.held[name], new)
                self.held[name] = new
            self._write(writing, part, files)
        self.version = version
        return self._finish(writing, files, version, base)

    def whole(self) -> Path:
        """Write all of the version that there is, for a server that has another one than the base of its changes."""
        assert self.version is not None  # one has been taken
        place = self.folder / f"version-{self.version}-whole"
        if place.exists():
            return place
        writing = self._begin(self.version, "whole")
        files: dict[str, str] = {}
        named = list(self.held.items())
        for start, end in bounds_of([tensor.numel() * tensor.dtype.itemsize for _, tensor in named], PIECE):
            self._write(writing, dict(named[start:end]), files)
        return self._finish(writing, files, self.version, None)

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Matrices alone: vectors are small, and what vLLM keeps in float32 (a router's correction) is among them."""
        wider = self.dtype is not None and tensor.dtype == torch.float32 and tensor.dim() > 1
        return tensor.to(self.dtype) if wider else tensor

    def _begin(self, version: int, kind: str) -> Path:
        writing = self.folder / f".version-{version}-{kind}-{os.getpid()}"
        with writes(writing):
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        return writing

    def _write(self, writing: Path, part: dict[str, torch.Tensor], files: dict[str, str]) -> None:
        if not part:
            return
        name = f"{len(files) + 1:05}.safetensors"
        with writes(writing):
            save_file(part, writing / name)
            with open(writing / name, "rb") as written:
                files[name] = hashlib.file_digest(written, "sha256").hexdigest()
                os.fsync(written.fileno())

    def _finish(self, writing: Path, files: dict[str, str], version: int, base: int | None) -> Path:
        place = self.folder / (f"version-{version}" if base is not None else f"version-{version}-whole")
        manifest = {"version": version, "base": base, "files": files, "tensors": len(self.held)}
        with writes(writing):
            (writing / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)  # of a run that was killed, and has gone on from a checkpoint
            os.replace(writing, place)
            self._forget(version)
        return place

    def _forget(self, version: int) -> None:
        """Remove all other versions: servers have read them, or get the whole."""
        for each in self.folder.glob("version-*"):
            if each.name not in (f"version-{version}", f"version-{version}-whole"):
                shutil.rmtree(each, ignore_errors=True)


def changes(name: str, old: torch.Tensor, new: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a file has of a tensor: nothing where it is as it was, `NAME.places` (of the flat tensor) and `NAME.values`
    of what has changed, to the bit; or the tensor, if that is less."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[new.dtype.itemsize]
    flat = new.view(-1)
    places = (flat.view(integer) != old.view(-1).view(integer)).nonzero().view(-1)
    if not len(places):
        return {}
    wide = torch.int32 if new.numel() <= 2**31 else torch.int64
    if len(places) * (wide.itemsize + new.dtype.itemsize) > MOST * new.numel() * new.dtype.itemsize:
        return {name: new}
    return {f"{name}.places": places.to(wide), f"{name}.values": flat[places]}


@contextlib.contextmanager
def writes(place: Path) -> Iterator[None]:
    """Say which folder could not be written, and leave nothing of it."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise FtHostError(
            f"backend_config.weights_folder: {place.parent} can't be written: {error.strerror or error}"
        ) from error
