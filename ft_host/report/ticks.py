"""The numbers at the axes of a chart, and how they are written."""

from __future__ import annotations

import itertools
import math

from ft_host.rundir import format as fmt

POWERS = (-307.0, 308.0)  # of ten, that a float can have


def _step_size(span: float, wanted: int, whole: bool) -> float:
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return max(1.0, math.ceil(size)) if whole else size


def ticks(low: float, high: float, wanted: int = 4, whole: bool = False) -> list[float]:
    """Return about `wanted` round numbers in [low, high]; `whole` for steps, which are integers."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # they differ by round-off only
        return [low]
    size = _step_size(high - low, wanted, whole)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [index * size for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten in [low, high], with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 3) if last - first > 2 else (1, 2, 5)
    every = max(1, (last - first) // 5)
    values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    return [tick for tick in values if low * 0.999 <= tick <= high * 1.001]


def tick_labels(values: list[float]) -> list[str]:
    """Write all ticks of an axis in one format: 0.2, 0.4; 2e-5, 4e-5; 10k, 20k."""
    biggest = max(abs(tick) for tick in values)
    if biggest == 0:
        return ["0" for _ in values]
    gaps = [b - a for a, b in itertools.pairwise(values)]
    gap = min(gaps) if gaps else biggest
    if biggest < 1e-3:
        return [fmt.number(float(f"{tick:.6g}")) for tick in values]
    scale, letter = next(((s, c) for s, c in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if biggest >= 10 * s), (1.0, ""))
    if not letter and biggest >= 1e3:
        return [f"{tick:,.10g}" for tick in values]
    places = max(0, -math.floor(math.log10(gap / scale) + 1e-9))
    if abs(gap / scale * 10**places - round(gap / scale * 10**places)) > 1e-6:
        places += 1  # steps of 0.25
    return ["0" if tick == 0 else f"{tick / scale:.{places}f}{letter}" for tick in values]
