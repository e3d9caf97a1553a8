"""What benchmarks pay for. Of online.py both sides are given the first by this file: it is cheap, and differs between
completions."""

from __future__ import annotations

import time


def every_fourth(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """The share of a completion's tokens whose number is a multiple of 4."""
    return [sum(token % 4 == 0 for token in ids) / len(ids) for ids in completion_ids]


# ---------------------------------------------------------------- of asynchronous.py


def after_0_ms(completion_ids: list[list[int]], **kwargs) -> list[float]:
    return every_fourth(completion_ids)


def after_50_ms(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """As a judge that is asked about one completion after the other."""
    time.sleep(0.05 * len(completion_ids))
    return every_fourth(completion_ids)


def after_200_ms(completion_ids: list[list[int]], **kwargs) -> list[float]:
    time.sleep(0.2 * len(completion_ids))
    return every_fourth(completion_ids)


# ---------------------------------------------------------------- of staleness.py


def exact_match_after_5_ms(completions: list[str], answer: list[str], **kwargs) -> list[float]:
    """examples/arithmetic's exact_match, by a judge that is asked about one completion after the other."""
    time.sleep(0.005 * len(completions))
    return [float(text.split("\n")[-1] == right) for text, right in zip(completions, answer, strict=True)]
