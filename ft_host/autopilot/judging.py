"""Whether an attempt is better than the one that it comes from, by a held-out figure that means the same in both.
Imports no torch."""

from __future__ import annotations

import math

from ft_host.autopilot.lineage import AS_GOOD, BETTER, NO_BETTER, Attempt, Verdict, compared
from ft_host.rundir.compared import judged_by, plain, same_loss
from ft_host.rundir.format import better
from ft_host.rundir.record import RunRecord

CLEAR = 0.01  # by which share a figure has to be better
LAST = 0.1  # of the steps, over which the figures of training are taken


def figures(record: RunRecord) -> dict[str, float]:
    """Return the held-out figures at the end of a run, those that tell which run is better first."""
    names = judged_by(record.evals, (), record.facts.get("plan/metric_directions"))
    return {name: record.evals[name].last for name in names}


def training(record: RunRecord) -> dict[str, float]:
    """Return the figure of a run's own steps, the mean of the last tenth of them: for runs without held-out rows."""
    series = record.train.get(record.main_metric)
    return {} if series is None else {record.main_metric: series.recent(max(5, int(LAST * len(series))))}


def differing(one: Attempt, other: Attempt) -> list[str]:
    first, second = compared(one.values), compared(other.values)
    return [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]


def judge(base: Attempt, attempt: Attempt, declared: dict[str, str] | None = None) -> Verdict:
    """Compare an attempt with the one that it comes from. `declared`: the method's `metric_directions`.

    A run that didn't end by itself is worse than any that did. Of two that didn't, the one that got further is better,
    where it doesn't have the finding any more that it was for.
    """
    gone = attempt.change is not None and not attempt.has_open(attempt.change.code)
    if not attempt.finished:
        further = not base.finished and gone and attempt.steps > base.steps
        return Verdict(kind=BETTER if further else NO_BETTER)
    if not base.finished:
        return Verdict(kind=BETTER)
    close = Verdict(kind=NO_BETTER)
    for name, before, after in _pairs(base, attempt, declared):
        gain = better(name, declared) * (after - before)
        close = Verdict(kind=NO_BETTER, metric=name, before=before, after=after)
        if math.isnan(gain) or abs(gain) > CLEAR * abs(before):
            close.kind = BETTER if gain > 0 or (math.isnan(before) and math.isfinite(after)) else NO_BETTER
            return close
        if gone and (gain >= 0 or (attempt.change is not None and attempt.change.safe)):
            close.kind = AS_GOOD
            return close
    if close.metric is None and gone and len(attempt.open_findings()) < len(base.open_findings()):
        close.kind = AS_GOOD  # nothing compares, and there is less to mend
    return close


def _pairs(base: Attempt, attempt: Attempt, declared: dict[str, str] | None) -> list[tuple[str, float, float]]:
    """(name, before, after) of the figures that mean the same in both, the most important first; those of training only
    where there is none that is held out."""
    changed = differing(base, attempt)
    names: list[str] = judged_by(dict.fromkeys(attempt.metrics), changed, declared)
    held_out = [
        (name, plain(name, base.metrics[name], base.scale), plain(name, attempt.metrics[name], attempt.scale))
        for name in names
        if name in base.metrics
    ]
    if held_out:
        return held_out
    return [
        (name, base.training[name], value)
        for name, value in attempt.training.items()
        if name in base.training and better(name, declared) and (name != "loss" or same_loss(changed))
    ]


def best_of(attempts: list[Attempt], declared: dict[str, str] | None = None) -> Attempt | None:
    """Return the best of the finished attempts: each that is better than the best of those before takes its place."""
    best: Attempt | None = None
    for attempt in attempts:
        if attempt.finished and (best is None or judge(best, attempt, declared).adopted):
            best = attempt
    return best


def metric_of(attempt: Attempt) -> str | None:
    return next(iter(attempt.metrics), None)
