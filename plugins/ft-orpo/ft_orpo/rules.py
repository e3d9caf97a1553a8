"""The rules of ORPO: those of pairs without a reference. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, free_preference_rules, rounded, short


def less_weight(view: View) -> list[Remedy]:
    new = rounded(view.config.beta / 3)
    said = f"Lower beta from {short(view.config.beta)} to {short(new)}: the likelihood then weighs more"
    return [Remedy(why=said, patch={"beta": new}, again=True)]


RULES: list[Rule] = free_preference_rules("ORPO", displacement=1, signal=2, remedies=less_weight)


@hookimpl
def ft_rules():
    return RULES
