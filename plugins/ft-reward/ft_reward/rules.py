"""The rules of reward modelling. Imports no torch.

Whether longer completions score higher (RM003) is unknown: no metric combines scores and lengths.
"""

from __future__ import annotations

import math

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Remedy,
    Rule,
    View,
    by_chance,
    fewer_steps,
    lower_rate,
    percent,
    raise_rate,
    rounded,
    rows_of,
    set_field,
    short,
)

TRAIN, HELD_OUT, SCORE = "accuracy", "eval_accuracy", "mean_reward"


def overfit(view: View) -> bool | None:
    if view.step == 0 or view.count(TRAIN) < 20:
        return None
    later, train = evaluated(view), view.mean(TRAIN, 20)
    if len(later) < 2:
        return None
    other = sum(later) / 2
    return (train > 0.95 and other < 0.7) or (train - other > 0.15 and train > 0.7)


def evaluated(view: View) -> list[float]:
    """The last two evaluations after the first update, as there may be few pairs in each."""
    series = view.series.get(HELD_OUT)
    return (
        [] if series is None else [value for step, value in zip(series.steps, series.values, strict=True) if step][-2:]
    )


def held_out(view: View) -> float | None:
    later = evaluated(view)
    return sum(later) / len(later) if later else None


def not_told_apart(view: View) -> bool | None:
    """After a quarter of the run, and at least 30 steps; for swapped pairs as soon as an evaluation shows them."""
    other = held_out(view)
    if other is not None and other < 0.42 and view.mean(TRAIN, 10) > 0.6:
        return True
    if view.count(TRAIN) < 30 or not view.warmed_up or (view.progress is not None and view.progress < 0.25):
        return None
    right = view.recent(TRAIN, 30)
    if by_chance(right, len(right) * rows_of(view), least=0.0):
        return True
    undecided = other is not None and len(evaluated(view)) > 1 and other <= 0.53
    return undecided and view.mean(TRAIN, 30) < 0.7  # more is learnt by heart: RM001


def is_slow(view: View) -> bool:
    """Pairs that are trained on aren't learnt either."""
    return view.mean(TRAIN, 30) <= 0.6


def not_told_apart_message(view: View) -> str:
    other, train = held_out(view), percent(view.mean(TRAIN, 30))
    if other is not None and other < 0.42:
        return (
            f"{train} of the training pairs are in the right order, and {percent(other)} of held-out ones: one of the"
            " two data sets may have chosen and rejected swapped, or they prefer different things."
        )
    other_part = "" if other is None else f", and {percent(other)} of held-out ones"
    return (
        f"After {view.step} steps {train} of the training pairs are in the right order{other_part}, where a coin toss"
        " gets 50 %."
    )


def not_told_apart_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Check some pairs of both data sets: is the chosen completion the better one?")
    return [raise_rate(view, 10), look] if is_slow(view) else [look]


def centre(view: View) -> list[Remedy]:
    """0.01, and ten times as much where that didn't hold them."""
    now = view.config.center_rewards_coefficient
    return set_field(view, "center_rewards_coefficient", rounded(10 * now) if now else 0.01, again=True)


RULES: list[Rule] = [
    Rule(
        code="RM001",
        title="The reward model overfits",
        stage="train",
        symptom="overfitting",
        level="results",
        mutes=("OPT009", "OPT010"),
        needs=(HELD_OUT, TRAIN),
        test=overfit,
        window=4,
        least=1,
        message=lambda view: (
            f"{percent(view.mean(TRAIN, 20))} of the training pairs are in the right order, and"
            f" {percent(view[HELD_OUT])} of held-out ones."
        ),
        remedies=lambda view: [
            *fewer_steps(view, view.series[HELD_OUT].best(1), "held-out pairs were told apart best"),
            lower_rate(view, 3),
            Remedy(why="Use the checkpoint of the best evaluation, and more pairs"),
        ],
        when=(
            "Training accuracy is above 0.95 and held-out accuracy, the mean of two evaluations, below 0.7, or 0.15"
            " below it."
        ),
        why="The model memorises pairs: its scores of a policy's completions mean nothing.",
        remedy="One epoch, a lower learning rate, more pairs.",
        source="usual practice of reward modelling (2203.02155)",
    ),
    Rule(
        code="RM002",
        title="Scores drift",
        stage="train",
        level="policy",
        needs=(SCORE,),
        test=lambda view: abs(view[SCORE]) > 10,
        least=10,
        message=lambda view: (
            f"The mean score is {short(view[SCORE])}, and was further than 10 from 0 {view.often}: the loss depends on"
            " differences of scores alone."
        ),
        remedies=centre,
        when="The mean score is further than 10 from 0 in 30 % of the last 50 steps.",
        why="Nothing keeps scores around 0.",
        remedy="Set center_rewards_coefficient to 0.01.",
        source="2312.09244",
    ),
    Rule(
        code="RM004",
        title="The model doesn't distinguish the pairs",
        stage="train",
        symptom="no_learning",
        level="results",
        follows_from=("DATA008", "DATA021", "DATA022", "OPT007", "loss"),
        later=("standstill", is_slow),
        needs=(TRAIN, "margin"),
        test=not_told_apart,
        least=5,
        share=0.6,
        message=not_told_apart_message,
        remedies=not_told_apart_remedies,
        when=(
            "After a quarter of the run (30 steps at least) 55 % of the training pairs are in the right order, or fewer"
            " (less than 60 % with two standard errors, and no more than before), or 53 % of held-out ones at two"
            " evaluations; or training pairs are learnt and fewer than 42 % of held-out ones are."
        ),
        why="The learning rate is too low, labels are noise, or chosen and rejected are swapped in one data set.",
        remedy="Raise learning_rate, check the pairs.",
        source="own judgement",
        mutes=("OPT005", "OPT007", "OPT009", "OPT010", "RM001"),
    ),
    Rule(
        code="RM005",
        title="Scores are far apart from the start",
        stage="probe",
        symptom="bad_start",
        level="notes",
        needs=("start/loss", "start/accuracy"),
        severity="info",
        test=lambda view: view["start/loss"] > math.log(2) + 0.15 and view["start/accuracy"] < 0.65,
        message=lambda view: (
            f"The loss of the first step is {short(view['start/loss'])}, where an untrained head has "
            f"{math.log(2):.3f}: the first scores are far apart, or rows have margins."
        ),
        when="The loss of the first step is 0.15 above ln 2, with fewer than 65 % of pairs in the right order.",
        why=(
            "A head that begins with large scores must unlearn them. Rows with a margin, and a model that was trained"
            " on other pairs, begin higher too."
        ),
        remedy="Check the scores of the first steps (min_reward, max_reward).",
        source="own judgement",
    ),
]


@hookimpl
def ft_rules():
    return RULES
