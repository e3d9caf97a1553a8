"""What a rule sees of a run: its config, its facts, and its metrics so far. Imports no torch."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ft_host.config.old_names import warn
from ft_host.config.run import OLD_NAMES
from ft_host.rundir.series import Series

if TYPE_CHECKING:
    from ft_host.diagnostics.suspects import Suspect

BASELINE = slice(4, 25)  # steps 5 to 25: after the first transients, before much has been learnt
SETTLED = 10  # the least number of values for a baseline


class _Config(SimpleNamespace):
    """The fields of the run, also by their names in earlier versions of the host."""

    def __getattr__(self, name: str) -> Any:
        new = OLD_NAMES.get(name)
        if new not in vars(self):
            raise AttributeError(f"the run's config has no field {name}", name=name, obj=self)
        warn("a rule", name, new)
        return getattr(self, new)


class View:
    """`view["loss"]` is a fact, or the value of this step. A name with a star stands for the current match
    of the rule.

    Everything else is over the metrics so far, without values that aren't finite: `recent`, `mean`, `median`,
    `baseline`, `slope`. All are cheap enough for every step.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = _Config(**config)
        self.facts: dict[str, Any] = {}
        self.suspects: list[Suspect] = []  # settings that may be behind what goes wrong, as far as facts tell
        self.series: dict[str, Series] = {}
        self.entry: dict[str, Any] = {}  # the current line of metrics
        self.step = 0
        self.cause: str | None = None  # the current match of a star
        self.window = 0  # the number of answers among the last `rule.window`
        self.share = 0.0  # the share of bad ones among them
        self.read: dict[str, None] = {}  # names whose values were asked for, in order: the evidence of a message

    # -- one value

    def name(self, name: str) -> str:
        return name if self.cause is None else name.replace("*", self.cause)

    def _asked(self, name: str) -> str:
        name = self.name(name)
        if name in self.facts or name in self.series:
            self.read[name] = None
        return name

    def __getitem__(self, name: str) -> Any:
        name = self._asked(name)
        if name in self.facts:
            return self.facts[name]
        if name in self.entry:
            return self.entry[name]
        return self.series[name].last

    def get(self, name: str, default: Any = None) -> Any:
        """Return `view[name]`, or `default` where the run hasn't recorded it."""
        name = self.name(name)
        return self[name] if name in self.facts or name in self.entry or name in self.series else default

    # -- many values

    def recent(self, name: str, count: int = 50) -> list[float]:
        """Return the last `count` finite values, oldest first."""
        series = self.series.get(self._asked(name))
        return [] if series is None else [value for value in series.values[-count:] if math.isfinite(value)]

    def mean(self, name: str, count: int = 50) -> float:
        """Return the mean of the last `count` finite values; NaN without any."""
        values = self.recent(name, count)
        return sum(values) / len(values) if values else math.nan

    def median(self, name: str, count: int = 50) -> float:
        """Return the median of the last `count` finite values; NaN without any."""
        values = self.recent(name, count)
        return statistics.median(values) if values else math.nan

    def baseline(self, name: str) -> float | None:
        """Return the run's own baseline: the median of the 5th to 25th value. None while there are too few."""
        series = self.series.get(self._asked(name))
        values = [] if series is None else [value for value in series.values[BASELINE] if math.isfinite(value)]
        return statistics.median(values) if len(values) >= SETTLED else None

    def opening(self, name: str, count: int = 10) -> list[float]:
        """Return the first `count` values, without those that aren't finite."""
        series = self.series.get(self._asked(name))
        return [] if series is None else [value for value in series.values[:count] if math.isfinite(value)]

    def first(self, name: str, count: int = 10) -> float:
        """Return the mean of the first `count` values; NaN without any."""
        values = self.opening(name, count)
        return sum(values) / len(values) if values else math.nan

    def slope(self, name: str, count: int = 50) -> float:
        """Return the rise of the least-squares line through the last `count` values, from its first to its
        last point.

        NaN for fewer than 5 values.
        """
        values = self.recent(name, count)
        size = len(values)
        if size < 5:
            return math.nan
        middle, average = (size - 1) / 2, sum(values) / size
        rise = sum((index - middle) * (value - average) for index, value in enumerate(values))
        return rise / sum((index - middle) ** 2 for index in range(size)) * (size - 1)

    def noise(self, name: str, count: int = 50) -> float:
        """Return the standard deviation of the last `count` values around their line. NaN for fewer than 5."""
        values, rise = self.recent(name, count), self.slope(name, count)
        size = len(values)
        if size < 5:
            return math.nan
        average = sum(values) / size
        left = [value - average - rise * (index / (size - 1) - 0.5) for index, value in enumerate(values)]
        return math.sqrt(sum(value * value for value in left) / size)

    def count(self, name: str) -> int:
        """Return how often it has been logged."""
        series = self.series.get(self.name(name))
        return 0 if series is None else len(series)

    def turn(self, name: str, every: int = 1) -> bool:
        """Return whether it is time for a test over all values.

        That is at every `every` values, and in a long run whenever their number has grown by a hundredth, so that the
        cost per step stays that of about a hundred values.
        """
        count = self.count(name)
        return count % max(every, count // 100) == 0

    # -- where the run is

    @property
    def total_steps(self) -> int | None:
        return self.facts.get("plan/total_steps")

    @property
    def progress(self) -> float | None:
        """The share of the planned steps that is done; None where their number isn't known."""
        return self.step / self.total_steps if self.total_steps else None

    @property
    def by_rollout(self) -> bool:
        """Whether the run learns from completions that it samples."""
        return "plan/reward_metric" in self.facts or self.count("perf/rollout_time") > 0

    @property
    def reward(self) -> str:
        """The metric of completions' rewards, as the method's config names it."""
        return self.facts.get("plan/reward_metric", "reward")

    @property
    def warmup_steps(self) -> float:
        steps = self.config.warmup_steps
        return steps * self.total_steps if steps < 1 and self.total_steps else steps

    @property
    def warmed_up(self) -> bool:
        return self.step > self.warmup_steps

    # -- in words

    @property
    def often(self) -> str:
        """ "in 43 % of the last 50 steps"."""
        what = "rollouts" if self._by_rollout() else "steps"
        return f"in {percent(self.share)} of the last {self.window} {what}"

    def _by_rollout(self) -> bool:
        return "perf/rollout_time" in self.entry and self.count("perf/rollout_time") < 0.9 * self.step


def percent(share: float) -> str:
    """Format a share: 0.434 -> "43 %". Only none is "0 %", and only all is "100 %": 0.9996 -> "99.96 %"."""
    value = 100 * share
    if 0 < abs(value) < 0.5:
        return f"{short(float(f'{value:.2g}'))} %"
    shown, digits = f"{value:.0f}", 0
    while value != 100 and digits < 4 and float(shown) == 100:
        digits += 1
        shown = f"{min(value, 99.9999) if value < 100 else max(value, 100.0001):.{digits}f}"
    return f"{shown} %"


def short(value: float | None) -> str:
    """A number as a person writes it: 0.012, 5e-06 -> 5e-6, 1234; "nothing" for None."""
    if value is None:
        return "nothing"
    text = f"{value:.3g}"
    if "e" in text and 1 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text


def rounded(value: float) -> float:
    """Round to two significant digits, so that a patch holds a natural number."""
    return float(f"{value:.2g}")


def went(before: float, now: float) -> str:
    """Say how a number has changed, by what is shown of it: "fell from 3 to 1.2", "rose from 1 to 3", "stayed at 3"."""
    if short(before) == short(now):
        return f"stayed at {short(now)}"
    return f"{'fell' if now < before else 'rose'} from {short(before)} to {short(now)}"
