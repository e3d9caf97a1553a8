"""The trainer's side of `transfer: folder`: weights as files in a folder that the servers see too. The host writes
them; published.py reads them, in vLLM's processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import torch

from ft_host.api import WeightsFolder
from ft_vllm.weights import Named


class Folder:
    """`dtype`: what the servers compute in, if known: wider matrices are rounded to it here, as they would be there, so
    that fewer values change from one version to the next.
    """

    def __init__(self, folder: WeightsFolder, dtype: torch.dtype | None):
        self.folder, self.dtype = folder, dtype
        self.lock = threading.Lock()

    def take(self, pieces: Iterable[list[Named]], version: int) -> Path:
        """Write a version, whole or as what has changed, and return its folder. Raises FtHostError where it can't be
        written."""
        with self.lock:
            self.folder.begin()
            for piece in pieces:
                self.folder.take((name, self._rounded(tensor)) for name, tensor in piece)
            place = self.folder.write(version)
            self.folder.forget(version)
            return place

    def whole(self) -> Path:
        """Write all of the last version, for a server that hasn't the one before it. Called from several threads."""
        with self.lock:
            place = self.folder.path / f"version-{self.folder.version}-whole"
            return place if place.exists() else self.folder.whole()

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """Matrices alone: vectors are small, and what vLLM keeps in float32 (a router's correction) is among them."""
        wider = self.dtype is not None and tensor.dtype == torch.float32 and tensor.dim() > 1
        return tensor.to(self.dtype) if wider else tensor
