"""What a GRPO run recognises by itself: the rules of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, rollout_rules

RULES: list[Rule] = rollout_rules(Names(letters="GRPO"))


@hookimpl
def ft_rules():
    return RULES
