"""Rules that methods share which learn from pairs without a reference. Imports no torch.

    RULES = free_preference_rules("ORPO", displacement=1, signal=2, remedies=...)

They read log-probs themselves (`logps/chosen`), which are far from 0 at first, whether they are sums over a completion
or means of its tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from ft_host.diagnostics.remedies import lower_rate, raise_rate
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared.preferences import COIN_TOSSES, MARGINS, UPDATES, USUAL_UPDATE, after_warm_up, rows_of
from ft_host.diagnostics.spread import risen
from ft_host.diagnostics.view import View, percent, short, went

ACCURACIES, LOGPS, BEGAN = "rewards/accuracies", "logps/chosen", "start/logps/chosen"
LEAST = 0.5  # nats: the log-prob of a token of a tuned model goes up and down by less


def lost(view: View) -> float:
    """How much less likely chosen completions have become, in the unit of `logps/chosen`."""
    return view[BEGAN] - view.mean(LOGPS, 10)


def displaced(view: View) -> bool:
    """The likelihood of chosen completions has fallen by most of what it was in the first place, while margins grew."""
    return lost(view) > max(LEAST, 0.8 * abs(view[BEGAN])) and view.mean(MARGINS, 10) > view.first(MARGINS, 5)


def displaced_message(view: View) -> str:
    rewards = view.recent("eval_reward")
    told = ""
    if len(rewards) > 1 and rewards[-1] < rewards[0]:
        told = f" The reward of held-out completions {went(rewards[0], rewards[-1])}."
    return (
        f"Chosen completions are {short(lost(view))} nats less likely than at first (logps/chosen was"
        f" {short(view[BEGAN])}), while the mean margin {went(view.first(MARGINS, 5), view.mean(MARGINS, 10))}: what"
        f" gains is something else than what was chosen.{told}"
    )


def no_preference(view: View) -> bool | None:
    """After a third of the steps after the warm-up, and 30 of them: neither the share of pairs in the right order nor
    the margin is above where it began, beyond what batches differ by."""
    if not view.turn(ACCURACIES):
        return None
    shares = after_warm_up(view, ACCURACIES)
    if len(shares) < 30 or len(shares) < ((view.total_steps or 0) - view.warmup_steps) / 3:
        return None
    if statistics.fmean(shares[-30:]) >= 0.9:
        return False  # nearly all are, and may have been from the start
    stretches = [(view.opening(name), view.recent(name, 20)) for name in (ACCURACIES, MARGINS)]
    if not all(before and after for before, after in stretches):
        return None  # none of them is finite
    return not any(risen(before, after, 2.5) for before, after in stretches)


def no_preference_message(view: View) -> str:
    return (
        f"After {view.step} steps {percent(view.mean(ACCURACIES, 30))} of the pairs are in the right order, and"
        f" {percent(view.first(ACCURACIES))} were at first; the mean margin"
        f" {went(view.first(MARGINS), view.mean(MARGINS, 20))}: no preference has been learnt from"
        f" {rows_of(view)} pairs a step."
    )


def no_preference_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at some pairs, whether the chosen one is the better one")
    slow = max(view.recent("update_ratio"), default=0.0) < USUAL_UPDATE
    return [raise_rate(view, 10), look] if slow else [look]


def free_preference_rules(
    letters: str, *, displacement: int, signal: int, remedies: Callable[[View], list[Remedy]]
) -> list[Rule]:
    """The numbers are those of the codes. `remedies`: what the method itself has against chosen completions that become
    less likely; a lower learning rate is added."""
    return [
        Rule(
            code=f"{letters}{displacement:03d}",
            family="free-preferences-01",
            follows_from=UPDATES,
            mutes=("OPT014",),
            title="Chosen completions become less likely",
            stage="train",
            symptom="forgetting",
            level="policy",
            needs=(BEGAN, LOGPS, MARGINS),
            test=displaced,
            window=30,
            least=10,
            share=0.5,
            message=displaced_message,
            remedies=lambda view: [*remedies(view), lower_rate(view, 3)],
            when=(
                "In half of the last 30 steps, chosen completions are less likely than at the first step by 80 % of the"
                " log-prob that they began with (0.5 nats at least), while margins have grown."
            ),
            why=(
                "A margin also grows where both completions lose, the rejected one more. Without a reference nothing"
                " but a likelihood term holds the policy where it began."
            ),
            remedy="Weigh the likelihood of the chosen completion more, lower learning_rate.",
            source="2410.08847 (likelihood displacement); SimPO 2405.14734 on its learning rate",
        ),
        Rule(
            code=f"{letters}{signal:03d}",
            family="free-preferences-02",
            follows_from=(*UPDATES, *COIN_TOSSES),
            title="No preference is learnt",
            stage="train",
            symptom="no_learning",
            level="results",
            mutes=("OPT005", "OPT007", "OPT009", "OPT010"),
            needs=(ACCURACIES, MARGINS),
            test=no_preference,
            least=5,
            share=0.6,
            message=no_preference_message,
            remedies=no_preference_remedies,
            when=(
                "After a third of the steps after the warm-up (30 at least), fewer than 90 % of pairs are in the right"
                " order, and neither their share nor the margin is above that of the first ten steps beyond what"
                " batches differ by."
            ),
            why="The learning rate is too low, or which one is better is a coin toss in these rows.",
            remedy="Raise learning_rate, look at the pairs.",
            source="own judgement",
        ),
    ]
