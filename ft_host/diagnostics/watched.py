"""A rule in a run: what it reads, and its answers so far."""

from __future__ import annotations

from collections import deque

from ft_host.diagnostics.finding import Finding
from ft_host.diagnostics.rule import Rule, is_fact


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
