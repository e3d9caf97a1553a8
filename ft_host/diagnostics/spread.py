"""Whether two stretches of a metric differ by more than the run's own spread: batches differ. Imports no torch.

Two questions, since each alone can be fooled. `errors_apart` counts standard errors between two means, with the wider
of the two spreads for both: a stretch that happens to be calm doesn't make the other one look far away. `ranks_apart`
looks at order alone, so that a few rows of great weight don't count for more than they are. Of values that don't
change, whatever they are distributed like, about one pair of stretches in ten thousand seems to have risen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def scatter(values: Sequence[float]) -> float:
    """The standard deviation of values around the line through them; 0 for fewer than 3."""
    size = len(values)
    if size < 3:
        return 0.0
    middle, average = (size - 1) / 2, statistics.fmean(values)
    rise = sum((index - middle) * (value - average) for index, value in enumerate(values))
    slope = rise / sum((index - middle) ** 2 for index in range(size))
    left = sum((value - average - slope * (index - middle)) ** 2 for index, value in enumerate(values))
    return math.sqrt(left / (size - 2))


def error_between(before: Sequence[float], after: Sequence[float]) -> float:
    """The standard error of the difference of two means."""
    return max(scatter(before), scatter(after)) * math.sqrt(1 / len(before) + 1 / len(after))


def errors_apart(before: Sequence[float], after: Sequence[float]) -> float:
    """By how many standard errors the mean of `after` is above that of `before`; infinite where neither varies, 0 where
    they are the same."""
    difference, error = statistics.fmean(after) - statistics.fmean(before), error_between(before, after)
    if error > 0:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def ranks_apart(before: Sequence[float], after: Sequence[float]) -> float:
    """The same by their order: the statistic of Mann and Whitney, in its standard deviations. At most 4.4 for 10 and 20
    values."""
    ways = len(before) * len(after)
    above = sum((value > other) + 0.5 * (value == other) for value in after for other in before)
    return (above - ways / 2) / math.sqrt(ways * (len(before) + len(after) + 1) / 12)


def risen(before: Sequence[float], after: Sequence[float], sure: float = 4.0) -> bool:
    """Whether `after` is above `before` beyond doubt: by both measures, of which ranks are bounded for few values."""
    best = math.sqrt(3 * len(before) * len(after) / (len(before) + len(after) + 1))  # ranks where all are above
    return errors_apart(before, after) > sure and ranks_apart(before, after) > min(sure - 0.5, 0.8 * best)


def fallen(before: Sequence[float], after: Sequence[float], sure: float = 4.0) -> bool:
    """Whether `after` is below `before` beyond doubt, by the same two measures."""
    return risen([-value for value in before], [-value for value in after], sure)


def trend(values: Sequence[float]) -> float:
    """Whether values grow from each to the next, by their order alone: the statistic of Mann and Kendall, in its
    standard deviations. A step from one level to another makes less of it than a rise throughout."""
    size = len(values)
    pairs = sum(
        (later > earlier) - (later < earlier) for index, earlier in enumerate(values) for later in values[index + 1 :]
    )
    return pairs / math.sqrt(size * (size - 1) * (2 * size + 5) / 18)
