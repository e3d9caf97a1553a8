"""Random states: Python's and numpy's, seeded from the run's seed, so that what a plugin or a reward draws from them is
the same in each run with that seed; and all of them kept and put back. Imports nothing of the host, and torch only
where it is asked for.
"""

from __future__ import annotations

import base64
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


def random_states() -> dict[str, Any]:
    """Return all random states of this process, as JSON; that of an accelerator under its kind, such as "cuda"."""
    import torch

    from ft_host.util import devices

    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode(),
    }
    device = devices.accelerator()
    if device is not None:
        states[device.type] = base64.b64encode(devices.random_state(device).numpy().tobytes()).decode()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Undo of `random_states`."""
    import torch

    from ft_host.util import devices

    def tensor(text: str) -> Any:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(tensor(states["torch"]))
    device = devices.accelerator()
    if device is not None and device.type in states:  # it may be resumed on another kind
        devices.set_random_state(device, tensor(states[device.type]))
