"""A rule in a run: what it reads, and its answers so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.rule import Rule, is_fact
from ft_host.diagnostics.view import View


class Watched:
    """A rule, and the match of a star in its needs."""

    def __init__(self, rule: Rule, plugin: str, cause: str | None):
        self.rule, self.plugin, self.cause = rule, plugin, cause
        names = [name if cause is None else name.replace("*", cause) for name in rule.needs]
        self.facts = [name for name in names if is_fact(name)]
        self.metrics = [name for name in names if not is_fact(name)]
        self.answers: deque[bool] = deque(maxlen=rule.window)
        self.bad = 0
        self.finding: Finding | None = None
        self.cleared_at: int | None = None

    def answer(self, bad: bool) -> None:
        if len(self.answers) == self.answers.maxlen:
            self.bad -= self.answers[0]
        self.answers.append(bad)
        self.bad += bad

    @property
    def share(self) -> float:
        return self.bad / len(self.answers) if self.answers else 0.0

    def step_before(self, view: View, ago: int) -> int:
        """Return the step of the answer `ago` answers back."""
        for name in self.metrics:
            series = view.series.get(name)
            if series is not None and len(series) > ago:
                return int(series.steps[-1 - ago])
        return view.step

    def evidence(self, view: View, read: Iterable[str] = ()) -> list[dict[str, Any]]:
        """What it needs, and what its message has `read` besides."""
        out = []
        for name in dict.fromkeys([*self.facts, *self.metrics, *read]):
            item = {"metric": name, "value": view.get(name)}
            if name in view.series and not self.rule.of_facts:
                window = max(view.window, 1)
                item |= {
                    "mean": view.mean(name, window),
                    "baseline": view.baseline(name),
                    "first": view.series[name].first,
                }
            out.append(item)
        return out
