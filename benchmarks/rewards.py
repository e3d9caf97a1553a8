"""What online.py pays for. Both sides are given this function by this file: it is cheap, and differs between
completions."""

from __future__ import annotations


def every_fourth(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """The share of a completion's tokens whose number is a multiple of 4."""
    return [sum(token % 4 == 0 for token in ids) / len(ids) for ids in completion_ids]
