"""The order of rows as a pure function: nothing is stored, for any number of rows."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

ROUNDS = 6
_MASK = (1 << 64) - 1


def permutation(size: int, *key: int | str) -> Callable[[int], int]:
    """Return a shuffle of range(size) that depends on `key` only: position -> index, in constant memory.

    A Feistel network over the bits of the position, keyed by a hash. Positions outside of the range go through it again
    (cycle walking), which takes less than two passes on average.
    """
    bits = max((size - 1).bit_length(), 6)  # fewer bits would give few permutations
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    keys = struct.unpack(f"<{ROUNDS}Q", digest)

    def mix(value: int, round_key: int) -> int:
        value = (value + round_key) * 0x9E3779B97F4A7C15 & _MASK
        value = (value ^ value >> 31) * 0xBF58476D1CE4E5B9 & _MASK
        return value ^ value >> 29

    def at(position: int) -> int:
        if not 0 <= position < size:
            raise IndexError(f"position {position} of {size}")
        value = position
        while True:
            left, right = value >> low, value & low_mask
            for step in range(0, ROUNDS, 2):
                left ^= mix(right, keys[step]) & high_mask
                right ^= mix(left, keys[step + 1]) & low_mask
            value = left << low | right
            if value < size:
                return value

    return at


def in_proportion(counts: list[int]) -> list[tuple[int, int]]:
    """Return (kind, ordinal) of sum(counts) items, each kind spread evenly: for mixtures read in order."""
    spread = [((ordinal + 0.5) / count, kind, ordinal) for kind, count in enumerate(counts) for ordinal in range(count)]
    return [(kind, ordinal) for _, kind, ordinal in sorted(spread)]
