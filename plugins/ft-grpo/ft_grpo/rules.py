"""The rules of GRPO: those of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, rollout_rules

NAMES = Names(letters="GRPO", by_length=("grpo", "bnpo"), by_no_length="dr_grpo", capped=("cispo",))
RULES: list[Rule] = rollout_rules(NAMES)


@hookimpl
def ft_rules():
    return RULES
