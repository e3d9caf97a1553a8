"""Freed memory of the host, which a run on a CPU keeps for its next step.

Each step frees what its backward pass was done with, and the next step asks for as much again. By itself glibc hands
large blocks back to the system and then gets them page by page, each filled with zeros: in some steps that is a tenth
of the time. Other C libraries are left as they are, and so is glibc where the user has said how it works. Imports no
torch.

What is kept is of use to blocks of the same sizes alone. torch asks for addresses that are multiples of 64; glibc cuts
them out of blocks that are up to 96 bytes longer, and small objects soon live in what it has cut off, so that a hole is
too short for what it was made by. Where other blocks come next, as after generation, it is better given back.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
LARGEST = 32 * 2**20  # the largest block, in bytes, that glibc can be told to take from its heap
KEPT = 2**31 - 1  # bytes at the end of the heap that stay: the most that mallopt takes
OWN = 2 * LARGEST  # what glibc's own adjustment of that ends at once a block of LARGEST was freed

_keeps = False  # whether this process does


def said(environment: dict[str, str]) -> bool:
    """Whether the user has told glibc when to hand memory back."""
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and name.endswith("_") for name in environment
    )


def adjustable(environment: dict[str, str]) -> bool:
    return platform.libc_ver()[0] == "glibc" and not said(environment)


def keep_freed() -> bool:
    """Keep what is freed from now on, and return whether that was possible."""
    global _keeps
    if adjustable(dict(os.environ)):
        library = ctypes.CDLL(None)
        _keeps = bool(library.mallopt(MMAP_THRESHOLD, LARGEST) and library.mallopt(TRIM_THRESHOLD, KEPT))
    return _keeps


def let_go() -> None:
    """Give what has been kept until now back to the system. What is freed from now on is kept again."""
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


def hand_back() -> None:
    """Give what was kept back to the system, as glibc does by itself, and keep no more."""
    global _keeps
    _keeps = False
    if adjustable(dict(os.environ)):
        library = ctypes.CDLL(None)
        library.mallopt(TRIM_THRESHOLD, OWN)
        library.malloc_trim(0)
