"""Curves: columns of numbers over steps, smoothed and thinned for a chart."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass
class Series:
    """A metric over optimizer steps, in rising order. Values may be NaN or infinite, since broken runs are
    shown too.
    """

    steps: array = field(default_factory=lambda: array("d"))
    values: array = field(default_factory=lambda: array("d"))
    least: float = math.inf  # least and most finite value; rules need them at each step
    most: float = -math.inf

    def __post_init__(self) -> None:
        for value in self.values:
            self._meet(value)

    def _meet(self, value: float) -> None:
        if math.isfinite(value):
            self.least, self.most = min(self.least, value), max(self.most, value)

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, step: float, value: float) -> None:
        """Append a value, or replace the value of the last step if it is the same step."""
        if self.steps and self.steps[-1] == step:
            self.values[-1] = value
            self._begin_again()
            return
        self.steps.append(step)
        self.values.append(value)
        self._meet(value)

    def _begin_again(self) -> None:
        self.least, self.most = math.inf, -math.inf
        self.__post_init__()

    def cut(self, step: float) -> None:
        """Drop `step` and all later steps: the run went back to a checkpoint and repeated them."""
        at = bisect_left(self.steps, step)
        del self.steps[at:]
        del self.values[at:]
        self._begin_again()

    @property
    def first(self) -> float:
        return self.values[0]

    @property
    def last(self) -> float:
        return self.values[-1]

    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    def best(self, direction: int) -> tuple[float, float] | None:
        """Return (step, value) of the highest or, with direction < 0, the lowest value; None where none is finite."""
        pairs = [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        return max(pairs, key=lambda pair: direction * pair[1], default=None)

    def recent(self, last: int = 10) -> float:
        """Return the mean of the last `last` values; NaN where one of them is."""
        values = self.values[-last:]
        return sum(values) / len(values)

    def median(self) -> float | None:
        values = sorted(self.finite())
        if not values:
            return None
        middle = len(values) // 2
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def smooth(series: Series) -> Series | None:
    """Return the mean over a window of a twenty-fifth of the curve around each step, or None for a short curve.

    The window shrinks towards the first step, so that a steep start keeps its shape and its first value; at the end it
    looks back only. Values that aren't finite are left out, and stay gaps.
    """
    size = len(series)
    if size < 25:
        return None
    half = max(2, size // 50)
    width = 2 * half + 1
    sums, counts = _Sums([value if math.isfinite(value) else 0.0 for value in series.values], width), [0]
    for value in series.values:
        counts.append(counts[-1] + math.isfinite(value))
    out = Series()
    for index, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
        if not math.isfinite(value):
            out.put(step, math.nan)
            continue
        reach = min(half, index)
        low, high = index - reach, min(size, index + reach + 1)
        out.put(step, sums.of(low, high) / (counts[high] - counts[low]))
    return out


class _Sums:
    """Sums over windows of `width` values, or fewer at both ends, by sums from the start and to the end of each block
    of `width`. Nothing is subtracted: beside a first value of 1 a difference of running sums would be 0, or below,
    where a curve has come down to 1e-18."""

    def __init__(self, values: list[float], width: int) -> None:
        self.width = width
        self.until, self.onwards = list(values), list(values)
        for place in range(1, len(values)):
            if place % width:
                self.until[place] += self.until[place - 1]
        for place in range(len(values) - 2, -1, -1):
            if (place + 1) % width:
                self.onwards[place] += self.onwards[place + 1]

    def of(self, low: int, high: int) -> float:
        """The sum from `low` up to `high`, which is not a part of it. A window that lies within a block without
        beginning it ends with the curve."""
        if low // self.width != (high - 1) // self.width:
            return self.onwards[low] + self.until[high - 1]
        return self.onwards[low] if low % self.width else self.until[high - 1]


def thin(series: Series, points: int = 500) -> Series:
    """Return at most about `points` points with the same picture: the lowest and highest value of each bucket of steps.

    The first and last points stay. A bucket with a value that isn't finite keeps one, so that the gap stays visible.
    """
    size = len(series)
    if size <= points:
        return series
    out = Series()
    buckets = (points - 2) // 2
    keep = {0, size - 1}
    for bucket in range(buckets):
        inside = range(1 + bucket * (size - 2) // buckets, 1 + (bucket + 1) * (size - 2) // buckets)
        good = [index for index in inside if math.isfinite(series.values[index])]
        if good:
            keep.add(min(good, key=series.values.__getitem__))
            keep.add(max(good, key=series.values.__getitem__))
        if len(good) < len(inside):
            keep.add(next(index for index in inside if not math.isfinite(series.values[index])))
    for index in sorted(keep):
        out.put(series.steps[index], series.values[index])
    return out
