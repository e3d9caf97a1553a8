"""What a check finds around it, whoever asked it and whatever was asked before."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Two layers gain nothing from a second thread, and on a busy machine threads that wait for each other take ten times
# as long. Read when torch is loaded.
VARIABLES = {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def surroundings(cache: Path) -> Iterator[None]:
    """A cache of the suite's own, one thread, and nothing of what accelerate keeps in a process. All is put back."""
    before = dict(os.environ)
    os.environ.update(VARIABLES, FT_HOST_CACHE=str(cache))
    threads = None
    if "torch" in sys.modules:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        if threads is not None:
            torch.set_num_threads(threads)
        if "accelerate.state" in sys.modules:
            from ft_host.testing.parity import forget_accelerate

            forget_accelerate()
