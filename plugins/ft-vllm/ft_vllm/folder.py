"""The trainer's side of `transfer: folder`: weights as files in a folder that the servers see too. The host writes
them; published.py reads them, in vLLM's processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from ft_host.api import WeightsFolder
from ft_vllm.weights import Named


class Folder:
    """Where the servers' type is known, matrices come rounded to it, so that fewer values change from one version to
    the next.
    """

    def __init__(self, folder: WeightsFolder):
        self.folder = folder
        self.lock = threading.Lock()

    def take(self, pieces: Iterable[list[Named]], version: int) -> Path:
        """Write a version, whole or as what has changed, and return its folder. Raises FtHostError where it can't be
        written."""
        with self.lock:
            self.folder.begin()
            for piece in pieces:
                self.folder.take(piece)
            place = self.folder.write(version)
            self.folder.forget(version)
            return place

    def whole(self) -> Path:
        """Write all of the last version, for a server that hasn't the one before it. Called from several threads."""
        with self.lock:
            place = self.folder.path / f"version-{self.folder.version}-whole"
            return place if place.exists() else self.folder.whole()
