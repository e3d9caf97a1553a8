"""The rules of SimPO and CPO: those of pairs without a reference. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, free_preference_rules, short

NOT_ABOUT = {"PRB005": "the loss compares two completions, and isn't that of a token"}


def more_likelihood(view: View) -> list[Remedy]:
    now = view.config.cpo_alpha
    new = 3 * now if now else 1.0
    said = f"Raise cpo_alpha from {short(now)} to {short(new)}: the chosen completions are then to become likelier, too"
    return [Remedy(why=said, patch={"cpo_alpha": new}, again=True)]


RULES: list[Rule] = free_preference_rules("SIMPO", displacement=1, signal=2, remedies=more_likelihood)


@hookimpl
def ft_rules():
    return RULES
