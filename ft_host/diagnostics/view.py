"""What a rule sees of a run: its config, the facts it has told, and its metrics so far. Imports no torch."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace
from typing import Any

from ft_host.config.old_names import warn
from ft_host.config.run import OLD_NAMES
from ft_host.rundir.series import Series

BASELINE = slice(4, 25)  # steps 5 to 25: after the first jolts, before much has been learnt
SETTLED = 10  # values of the baseline that must be there


class _Config(SimpleNamespace):
    """The fields of the run, also by the names that those of the host had in earlier versions."""

    def __getattr__(self, name: str) -> Any:
        new = OLD_NAMES.get(name)
        if new not in vars(self):
            raise AttributeError(f"the run's config has no field {name}", name=name, obj=self)
        warn("a rule", name, new)
        return getattr(self, new)


class View:
    """`view["loss"]` is a fact, or the value of this step. Names with a star stand for what the rule is looking at now.

    Everything else is about the metrics so far, with what isn't finite left out: `recent`, `mean`, `median`,
    `baseline`, `slope`. All cheap enough for every step.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = _Config(**config)
        self.facts: dict[str, Any] = {}
        self.series: dict[str, Series] = {}
        self.entry: dict[str, Any] = {}  # the line of metrics that is looked at
        self.step = 0
        self.cause: str | None = None  # what a star stands for
        self.window = 0  # answers that the rule has had, of the last `rule.window`
        self.share = 0.0  # of them that were bad

    # -- one value

    def name(self, name: str) -> str:
        return name if self.cause is None else name.replace("*", self.cause)

    def __getitem__(self, name: str) -> Any:
        name = self.name(name)
        if name in self.facts:
            return self.facts[name]
        if name in self.entry:
            return self.entry[name]
        return self.series[name].last

    def get(self, name: str, default: Any = None) -> Any:
        """What `view[name]` gives, or `default` where the run hasn't told it."""
        name = self.name(name)
        return self[name] if name in self.facts or name in self.entry or name in self.series else default

    # -- many values

    def recent(self, name: str, count: int = 50) -> list[float]:
        """The last `count` values that are finite, oldest first."""
        series = self.series.get(self.name(name))
        return [] if series is None else [value for value in series.values[-count:] if math.isfinite(value)]

    def mean(self, name: str, count: int = 50) -> float:
        """NaN where there is none."""
        values = self.recent(name, count)
        return sum(values) / len(values) if values else math.nan

    def median(self, name: str, count: int = 50) -> float:
        """NaN where there is none."""
        values = self.recent(name, count)
        return statistics.median(values) if values else math.nan

    def baseline(self, name: str) -> float | None:
        """The run's own beginning: the median of the 5th to 25th value. None while there are too few."""
        series = self.series.get(self.name(name))
        values = [] if series is None else [value for value in series.values[BASELINE] if math.isfinite(value)]
        return statistics.median(values) if len(values) >= SETTLED else None

    def first(self, name: str, count: int = 10) -> float:
        """The mean of the first `count` values. NaN where there is none."""
        series = self.series.get(self.name(name))
        values = [] if series is None else [value for value in series.values[:count] if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

    def slope(self, name: str, count: int = 50) -> float:
        """How much the least-squares line through the last `count` values rises from its first to its last. NaN below
        5."""
        values = self.recent(name, count)
        size = len(values)
        if size < 5:
            return math.nan
        middle, average = (size - 1) / 2, sum(values) / size
        rise = sum((index - middle) * (value - average) for index, value in enumerate(values))
        return rise / sum((index - middle) ** 2 for index in range(size)) * (size - 1)

    def noise(self, name: str, count: int = 50) -> float:
        """The standard deviation of what is left of the last `count` values without their line. NaN below 5."""
        values, rise = self.recent(name, count), self.slope(name, count)
        size = len(values)
        if size < 5:
            return math.nan
        average = sum(values) / size
        left = [value - average - rise * (index / (size - 1) - 0.5) for index, value in enumerate(values)]
        return math.sqrt(sum(value * value for value in left) / size)

    def count(self, name: str) -> int:
        """How often it has been logged."""
        series = self.series.get(self.name(name))
        return 0 if series is None else len(series)

    def turn(self, name: str, every: int = 1) -> bool:
        """Whether it is time for a test that looks at all values: at every so many, and in a long run whenever it has
        grown by a hundredth, so that the cost for a step stays that of about a hundred values."""
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
        """The metric of what completions earn, as the method's config names it."""
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
    """0.434 -> "43 %"."""
    shown = f"{100 * share:.0f}"
    if shown in ("0", "100") and share not in (0, 1):
        shown = f"{100 * share:.2g}" if share < 0.5 else f"{100 * share:.1f}"
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
    """To two figures, so that a patch holds a number that a person would write."""
    return float(f"{value:.2g}")
