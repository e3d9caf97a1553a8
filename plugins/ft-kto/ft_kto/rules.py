"""The rules of KTO. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    CHOSEN,
    MARGINS,
    REJECTED,
    Remedy,
    Rule,
    View,
    errors,
    larger_step,
    percent,
    preference_rules,
    rounded,
    rows_of,
    set_field,
    short,
)

HELD_OUT = f"eval_{MARGINS}"
STILL = 0.02  # rewards of a policy that has hardly moved


def no_estimate(view: View) -> bool | None:
    """With few rows a step. With many, 0 means that mismatched completions got no likelier; and where rewards are 0 too
    the policy is still the reference."""
    rewards = [*view.recent(CHOSEN, 20), *view.recent(REJECTED, 20)]
    if rewards and max(map(abs, rewards)) < STILL:
        return None
    return view["kl"] == 0 and rows_of(view) < 8 and view.config.loss_type == "kto"


def one_sided(view: View) -> bool | None:
    """One of the two rewards has moved, and the other has not."""
    if view.count(CHOSEN) < 30 and view.count(REJECTED) < 30:
        return None
    good, bad = abs(view.mean(CHOSEN, 20)), abs(view.mean(REJECTED, 20))
    if good != good or bad != bad:  # there are none
        return True
    return max(good, bad) > 0.5 and min(good, bad) < 0.02 * max(good, bad)


def moved(view: View, name: str) -> str:
    value = view.mean(name, 20)
    return f"is {short(value)}" if value == value else "isn't known: there were no such rows"


def beside(view: View) -> str:
    good, bad = abs(view.mean(CHOSEN, 20)), abs(view.mean(REJECTED, 20))
    if good != good or bad != bad:
        return ""
    return f": one has moved {percent(min(good, bad) / max(good, bad))} as far as the other"


def opposite(view: View) -> bool | None:
    if view.step == 0 or view.count(MARGINS) < 10:
        return None
    return view.mean(MARGINS, 20) > 0.1 and errors(view, 20) > 3 and view[HELD_OUT] < -0.1


def balance(view: View) -> list[Remedy]:
    """The weight that evens out the labels, where their numbers are known."""
    good, bad = view.get("data/desirable", 0), view.get("data/undesirable", 0)
    if not good or not bad:
        return [Remedy(why="Set desirable_weight and undesirable_weight so that both labels have equal weight")]
    name, other = (
        ("desirable_weight", "undesirable_weight") if good < bad else ("undesirable_weight", "desirable_weight")
    )
    weight = rounded(vars(view.config)[other] * max(good, bad) / min(good, bad))
    return set_field(view, name, weight, f": {good} good and {bad} bad completions then weigh the same", again=True)


OWN = [
    Rule(
        code="KTO001",
        follows_from=("PRB001",),
        title="The KL estimate stays 0",
        stage="train",
        level="signal",
        needs=("kl",),
        test=no_estimate,
        share=0.8,
        mutes=("KTO002", "KTO006", "KTO007"),
        message=lambda view: (
            f"The KL estimate was 0 {view.often}, made over {rows_of(view)} rows a step: too few for an estimate."
            " Completions are then compared with 0."
        ),
        remedies=lambda view: larger_step(view, rows_of(view), 16),
        when="kl is 0 in 80 % of the last 50 steps, and a step has fewer than 8 rows.",
        why=(
            "The estimate is a mean over the rows of a step, cut off at 0: over a few rows it is 0 half of the time "
            "for any policy."
        ),
        remedy="16 to 128 rows a step.",
        source="KTO 2402.01306; TRL's documentation",
    ),
    Rule(
        code="KTO002",
        follows_from=("DATA009", "PRB001"),
        title="Only one of the two sides is learnt",
        stage="train",
        symptom="no_learning",
        level="policy",
        needs=("loss",),
        fields=("desirable_weight",),
        severity="info",
        test=one_sided,
        share=0.6,
        least=10,
        message=lambda view: (
            f"The reward of good completions {moved(view, CHOSEN)}, that of bad ones {moved(view, REJECTED)}"
            f"{beside(view)}."
        ),
        remedies=balance,
        when=(
            "After 30 steps one reward's size is below 2 % of the other's, which is above 0.5; or has never been there."
        ),
        why="One label outweighs the other. If good completions were likely from the start, this is harmless.",
        remedy="Balance the weights.",
        source="KTO 2402.01306",
    ),
    Rule(
        code="KTO004",
        follows_from=("DATA021", "PRB001"),
        title="Held-out labels say the opposite",
        stage="train",
        level="signal",
        mutes=("KTO005", "OPT009", "OPT010", "OPT014"),
        needs=(HELD_OUT, MARGINS),
        test=opposite,
        window=4,
        least=1,
        message=lambda view: (
            f"Margins are {short(view.mean(MARGINS, 20))} in training and {short(view[HELD_OUT])} on held-out rows:"
            " either one of the two data sets has good and bad swapped, or the labels of training are learnt by heart."
        ),
        remedies=lambda view: [Remedy(why="Check the labels of some rows of both: ft-host data kto")],
        when="An evaluation's margin is below -0.1 while that of training is above 0.1.",
        why=("Training makes held-out margins worse: labels are swapped, or the model memorises noise."),
        remedy="Correct the labels.",
        source="own judgement",
    ),
]

RULES: list[Rule] = [*OWN, *preference_rules("KTO", displacement=5, signal=6, wrong=7)]


@hookimpl
def ft_rules():
    return RULES
