"""The rules of RLOO: those of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Names, Rule, Suspect, View, rollout_rules, short

LEAST, MOST = "completions/reward_min", "completions/reward_max"


def clipped_rewards(view: View) -> list[Suspect]:
    """reward_clip_range: holds what completions earn; rewards beyond it are all the same."""
    bounds = view.config.reward_clip_range
    if bounds is None or not view.count(LEAST) or not view.count(MOST):
        return []
    least, most = view.series[LEAST].least, view.series[MOST].most
    if bounds[0] < most and least < bounds[1] and bounds[1] - bounds[0] > 0.01 * (most - least):
        return []
    return [
        Suspect(
            field="reward_clip_range",
            value=bounds,
            usual=f"around what completions earn, {short(least)} to {short(most)}",
            explains=("no_signal", "no_learning"),
            source="the definition of the bounds",
            said=f"reward_clip_range is {bounds}, and completions earn {short(least)} to {short(most)}",
            remedy=f"Set reward_clip_range to none, from {bounds}",
            certain=True,
            distance=9.0,
        )
    ]


SUSPECTS = [clipped_rewards]
RULES: list[Rule] = rollout_rules(Names(letters="RLOO", clip_of_completions=True))  # a ratio of each completion


@hookimpl
def ft_rules():
    return RULES
