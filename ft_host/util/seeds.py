"""Python's and numpy's random states: seeded from the run's seed, so that what a plugin or a reward draws from them is
the same in each run with that seed. Imports nothing of the host, and torch only where it is asked for.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def seed_of(*key: Any) -> int:
    """Return a seed that depends on `key` alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=4).digest()) >> 1


def seed_all(seed: int) -> None:
    """Seed `random`, `numpy.random` and torch."""
    import torch

    reseed(seed)
    torch.manual_seed(seed)


def reseed(seed: int) -> None:
    """Seed `random` and `numpy.random`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def reseed_loaded(seed: int) -> None:
    """Seed `random` and `numpy.random`, and torch if it is imported: in a process that trains nothing."""
    reseed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@contextmanager
def aside() -> Iterator[None]:
    """Put `random` and `numpy.random` back afterwards to where they were: the run goes on as if nothing was drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
