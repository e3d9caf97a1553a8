"""The rules of online DPO: those of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, rollout_rules

NAMES = Names(letters="ODPO", clip=None)
RULES: list[Rule] = rollout_rules(NAMES)


@hookimpl
def ft_rules():
    return RULES
