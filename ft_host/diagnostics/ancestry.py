"""What was tried before: the runs that a run comes from (`parent_run`), and which remedies didn't help. No torch.

A remedy that led from an ancestor to this run, or to another of its ancestors, isn't proposed again for the finding
that it was for, unless the run after it was better; the next one comes first then. Nor does a number go back to where
an ancestor had it: it goes half way, in ratio.

The ancestors are a fact of the run (`plan/ancestors`, the oldest first), so that its folder tells the same later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ft_host.diagnostics.rule import Remedy
from ft_host.diagnostics.view import View, rounded, short
from ft_host.errors import UsageError
from ft_host.rundir.compared import judged_by, plain, same_loss
from ft_host.rundir.format import better
from ft_host.rundir.record import RunRecord, read_run
from ft_host.rundir.series import Series

FACT, DIRECTIONS = "plan/ancestors", "plan/metric_directions"
MOST = 8  # ancestors that are looked at
POINTS = 20  # of each curve that is kept
HELPED = 0.02  # by which share a figure has to be better
CLOSE = 1.3  # a number this near to the one that it has, in ratio, is the same
# Fields that differ from run to run and change nothing of what is learnt.
BOOKKEEPING = (
    "output_dir",
    "parent_run",
    "resume_from_checkpoint",
    "stop_on",
    "fail_on",
    "locked_fields",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "progress",
    "report_to",
    "run_name",
    "eval_steps",
)


def ancestors(parent: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fact of a run's ancestors; empty where it has none. An ancestor whose folder is gone, or can't be
    read, ends the line."""
    found: list[dict[str, Any]] = []
    after, seen = dict(config), set()
    while parent is not None and parent not in seen and len(found) < MOST:
        seen.add(parent)
        try:
            record = read_run(parent)
        except UsageError:
            break
        found.insert(0, _told(record, after))
        after, parent = record.config, record.parent
    return {FACT: found} if found else {}


def _told(record: RunRecord, after: Mapping[str, Any]) -> dict[str, Any]:
    config = record.config
    changed = {
        name: [value, after[name]]
        for name, value in config.items()
        if name in after and after[name] != value and name not in BOOKKEEPING
    }
    curves = {name: record.evals[name] for name in judged_by(record.evals, changed, record.facts.get(DIRECTIONS))[:1]}
    main = record.main_metric
    if main in record.train and (main != "loss" or same_loss(changed)):
        curves[main] = record.train[main]
    return {
        "run": str(record.folder),
        "changed": changed,  # on the way to the run after it
        "found": [finding["code"] for finding in record.findings.values() if finding["state"] == "open"],
        "curves": {name: _thinned(series, name, config) for name, series in curves.items()},
    }


def _thinned(series: Series, name: str, config: Mapping[str, Any]) -> list[list[float]]:
    """At most about POINTS [step, value], each the mean of a stretch that ends there."""
    size = math.ceil(len(series) / POINTS)
    out = []
    for end in range(size, len(series) + 1, size):
        values = [value for value in series.values[end - size : end] if math.isfinite(value)]
        if values:
            out.append([series.steps[end - 1], plain(name, sum(values) / len(values), config)])
    return out


# ---------------------------------------------------------------- what didn't help


def tried(view: View, code: str) -> list[dict[str, Any]]:
    """Return the ancestors that had the finding, whose changes led on to a run that has it again and is no better."""
    line = view.facts.get(FACT, [])
    out = []
    for at, ancestor in enumerate(line):
        if code in ancestor["found"] and ancestor["changed"] and not _helped(view, line, at):
            out.append(ancestor)
    return out


def _helped(view: View, line: list[dict[str, Any]], at: int) -> bool:
    """Whether the run after an ancestor was better than it, at the last step that both have got to."""
    for name, before in line[at]["curves"].items():
        after = line[at + 1]["curves"].get(name) if at + 1 < len(line) else _curve(view, name)
        way = better(name, view.facts.get(DIRECTIONS))
        if not after or not before or not way:
            continue
        until = min(before[-1][0], after[-1][0])
        then, now = _at(before, until), _at(after, until)
        if then is not None and now is not None:
            return way * (now - then) > HELPED * abs(then)
    return False


def _curve(view: View, name: str) -> list[list[float]]:
    series = view.series.get(name)
    return [] if series is None else _thinned(series, name, vars(view.config))


def _at(curve: list[list[float]], step: float) -> float | None:
    return next((value for at, value in reversed(curve) if at <= step), None)


def untried(remedies: list[Remedy], view: View, code: str) -> tuple[list[Remedy], str]:
    """Return the remedies that are left to a finding, and what to say of the others; "" where none was tried."""
    if FACT not in view.facts:
        return remedies, ""
    before = tried(view, code)
    again = [remedy for remedy in remedies if any(_same_way(remedy, ancestor, view) for ancestor in before)]
    left = [_between(remedy, view) for remedy in remedies if remedy not in again]
    in_vain = [ancestor for ancestor in before if any(_same_way(remedy, ancestor, view) for remedy in again)]
    said = "; ".join(f"{_changes(ancestor)} (after {Path(ancestor['run']).name})" for ancestor in in_vain)
    return [each for each in left if each is not None], f" Tried before, and no better: {said}." if said else ""


def _changes(ancestor: dict[str, Any]) -> str:
    return ", ".join(f"{name} from {_said(old)} to {_said(new)}" for name, (old, new) in ancestor["changed"].items())


def _said(value: Any) -> str:
    return short(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _same_way(remedy: Remedy, ancestor: dict[str, Any], view: View) -> bool:
    """Whether all that a remedy changes has been changed after this ancestor: a number the same way, another value to
    the same. A number whose size was measured may go further than it did."""
    changed = ancestor["changed"]
    if not remedy.patch or not set(remedy.patch) <= set(changed):
        return False
    for name, new in remedy.patch.items():
        (old, then), now = changed[name], vars(view.config).get(name)
        if not all(_is_number(value) for value in (old, then, now, new)):
            if new != then:
                return False
        elif (new > now) != (then > old) or (remedy.measured and not _close(new, then)):
            return False
    return True


def _between(remedy: Remedy, view: View) -> Remedy | None:
    """A remedy whose number doesn't go back to, or past, one that an ancestor had; None where no room is left."""
    patch, why = dict(remedy.patch), remedy.why
    for name, new in remedy.patch.items():
        now = vars(view.config).get(name)
        had = [
            each
            for ancestor in view.facts[FACT]
            for each in ancestor["changed"].get(name, [])
            if _is_number(each) and _is_number(now) and _is_number(new) and _is_past(now, each, new)
        ]
        if not had:
            continue
        limit = min(had, key=lambda each: abs(each - now))
        half = _half_way(now, limit)
        if half is None:
            return None
        patch[name] = half
        why = f"Set {name} between {_said(now)} and {_said(limit)}, which were tried: to {_said(half)}"
    return remedy if patch == remedy.patch else replace(remedy, patch=patch, why=why)


def _is_past(now: float, tried_value: float, new: float) -> bool:
    """Whether going from `now` to `new` gets to a value that was tried, or past it."""
    return now < tried_value <= new or new <= tried_value < now


def _half_way(now: float, limit: float) -> float | int | None:
    if min(now, limit) <= 0 or max(now, limit) < CLOSE**2 * min(now, limit):
        return None
    half = math.sqrt(now * limit)
    if isinstance(now, int) and isinstance(limit, int):
        return round(half) if round(half) not in (now, limit) else None
    return rounded(half)


def _close(one: float, other: float) -> bool:
    return max(abs(one), abs(other)) <= CLOSE * min(abs(one), abs(other))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
