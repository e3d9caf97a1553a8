"""The rules of best of n: those of all rollouts. BON001 is about prompts whose candidates are all equal. Imports no
torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, rollout_rules

NAMES = Names(letters="BON", clip=None)
NO_KL = NAMES.code(7)  # the KL from the reference, which the method hasn't
RULES: list[Rule] = [rule for rule in rollout_rules(NAMES) if rule.code != NO_KL]


@hookimpl
def ft_rules():
    return RULES
