"""The rules of RLOO: those of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, rollout_rules

RULES: list[Rule] = rollout_rules(Names(letters="RLOO", clip_of_completions=True))  # a ratio of each completion


@hookimpl
def ft_rules():
    return RULES
