"""Held-out rows: their loss beside that of the steps, and what completions of their prompts earn. Imports no torch."""

from __future__ import annotations

import itertools
import math
import statistics

from ft_host.diagnostics.remedies import LOOK_AT_PAID, fewer_steps, lower_rate, restore, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.loss_trends import NOTHING, may_be_too_high
from ft_host.diagnostics.sizes import strong_updates
from ft_host.diagnostics.spread import fallen
from ft_host.diagnostics.view import View, short, went

FEW = 8  # held-out rows below which nothing is said of their reward
FEW_LOOKS = 4  # evaluations after which one that is low by chance is to be expected
BETTER = ("eval_reward", "eval_rewards/accuracies", "eval_accuracy")  # more is better, whatever the held-out loss does


def best_evaluation(view: View) -> tuple[float, float]:
    """(step, loss) of the lowest held-out loss."""
    return view.series["eval_loss"].best(-1) or (math.nan, math.nan)


def gets_better(view: View) -> bool:
    """Whether the last evaluation is the best by what counts beside the loss: what completions earn, pairs or tokens
    that are right. A model that is sure of itself loses more by the few that it gets wrong."""
    for name in BETTER:
        values = view.recent(name, 1000)
        if len(values) > 1 and values[-1] >= max(values) > values[0]:
            return True
    return False


def losses_then(view: View) -> list[float]:
    """The losses of the ten steps before the best evaluation."""
    step, losses = best_evaluation(view)[0], view.series["loss"]
    return [value for at, value in zip(losses.steps, losses.values, strict=True) if step - 10 < at <= step]


def overfits(view: View) -> bool | None:
    """The held-out loss is a tenth above its best twice, or a quarter once, or has risen three times running, while
    that of the steps falls. By twice what it moves the other way: it goes up and down with the weights, and the lowest
    of many is one of its lows.
    """
    values = view.recent("eval_loss", 1000)
    if len(values) < 3 or view.by_rollout:
        return None
    _, best = best_evaluation(view)
    if gets_better(view):
        return False
    then = losses_then(view)
    falls = bool(then) and fallen(then, view.recent("loss", 20), 2.0)
    risen = len(values) > 3 and values[-1] > values[-2] > values[-3] > values[-4] and values[-1] > 1.05 * best
    above = values[-1] > 1.25 * best or min(values[-2:]) > 1.1 * best
    least = max(NOTHING / 2, restlessness(values))
    return falls and values[-1] - best > least and (above or risen)


def restlessness(values: list[float]) -> float:
    """Twice the largest move of evaluations against where they went: up before the lowest of them, down after it."""
    lowest = values.index(min(values))
    moves = [after - before for before, after in itertools.pairwise(values)]
    return 2 * max([0.0, *moves[:lowest], *(-move for move in moves[lowest:])])


def overfit_remedies(view: View) -> list[Remedy]:
    out = fewer_steps(view, best_evaluation(view), "the held-out loss was lowest")
    out += [lower_rate(view, 2)] if may_be_too_high(view) else []
    if view.config.use_peft and not view.config.lora_dropout:
        out.append(Remedy(why="Set lora_dropout to 0.05", patch={"lora_dropout": 0.05}, again=True))
    elif not view.config.use_peft and not view.config.weight_decay:
        out.append(Remedy(why="Set weight_decay to 0.1", patch={"weight_decay": 0.1}, again=True))
    return [*out, Remedy(why="Train on more rows")]


def went_on_for_nothing(view: View) -> bool | None:
    """It ended above its best by more than it goes up and down by. One that stays is no loss."""
    values = view.recent("eval_loss", 1000)
    if len(values) < 6 or view.by_rollout:
        return None
    best = values.index(min(values))
    above = min(values[-2:]) - values[best] > max(0.02 * abs(values[best]), restlessness(values))
    return best + 1 <= len(values) / 2 and len(values) - best > 4 and above and not gets_better(view)


# ---------------------------------------------------------------- the reward of held-out completions


def reward_doubt(view: View) -> float:
    """The standard error of the difference of the last evaluation and the first, as if they were of other rows. They
    are of the same, so it is rather too large."""
    first, last = view.series["eval_reward_std"].first, view["eval_reward_std"]
    return math.sqrt((first * first + last * last) / view["plan/scored_rows"])


def reward_lost(view: View) -> float:
    """By how much the last evaluation earns less than the first."""
    return view.series["eval_reward"].first - view["eval_reward"]


def held_out_reward_falls(view: View) -> bool | None:
    """By three standard errors at once; by one and a half at two evaluations running; or by one, where each evaluation
    since the first, three at the least, earned less than the one before. By more, the more evaluations there have been:
    of many, one is low by chance."""
    values, doubt = view.recent("eval_reward", 1000), reward_doubt(view)
    if len(values) < 2 or view["plan/scored_rows"] < FEW:
        return None
    lost = [values[0] - value for value in values[1:]]
    slides = len(lost) > 2 and all(after < before for before, after in itertools.pairwise(values))
    least = max(1e-6 * abs(values[0]), 1e-12)
    often = min(1 + max(len(lost) - FEW_LOOKS, 0) / 8, 2.0)
    # a policy that has just begun to move dips, and comes back: once isn't enough, unless a good part is gone
    once = not view.by_rollout or lost[-1] > 0.3 * abs(values[0])
    return lost[-1] > least and (
        (once and lost[-1] > min(3 * often, 4) * doubt)
        or (len(lost) > 1 and min(lost[-2:]) > 1.5 * often * doubt)
        or (slides and lost[-1] > doubt)
    )


def reward_remedies(view: View) -> list[Remedy]:
    best = view.series["eval_reward"].best(1)
    back = [restore(view)] if best is not None and best[0] > 0 else []
    if vars(view.config).get("reward") and not strong_updates(view):
        # Steps of a usual size that make a policy worse: what they are paid for is the first suspect.
        return [LOOK_AT_PAID, *back]
    return [
        lower_rate(view, 3),
        *warm_up(view),
        *back,
        Remedy(why="Look at held-out completions in samples.jsonl: what has changed in them"),
    ]


RULES = [
    Rule(
        code="OPT009",
        title="The model overfits",
        stage="train",
        symptom="overfitting",
        level="results",
        mutes=("OPT010",),
        follows_from=("PRB001",),  # a held-out loss beside another reference than where the policy began
        needs=("eval_loss", "loss"),
        window=1,
        least=1,
        share=1.0,
        test=overfits,
        message=lambda view: (
            f"The held-out loss {went(best_evaluation(view)[1], view['eval_loss'])} since step"
            f" {best_evaluation(view)[0]:.0f}, while that of the steps"
            f" {went(statistics.fmean(losses_then(view)), view.mean('loss', 20))}."
        ),
        remedies=overfit_remedies,
        when=(
            "The held-out loss is a quarter above its lowest, or a tenth at two evaluations running, or has risen at"
            " three, and by twice what it ever moved the other way, while the training loss falls; not while the reward"
            " of held-out completions, or the share of held-out pairs in the right order, is at its best."
        ),
        why=(
            "The rows are being learnt by heart: too many passes over too few of them, or labels that don't follow from"
            " the prompts, so that there is nothing else to learn."
        ),
        remedy="Stop earlier, lower learning_rate, regularise, use more data.",
        source="SageMaker Debugger Overfit; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT010",
        title="The last half of the training brought nothing",
        stage="after",
        symptom="no_learning",
        level="notes",
        follows_from=("updates", "loss", "policy", "results", "standstill"),
        needs=("eval_loss",),
        severity="info",
        test=went_on_for_nothing,
        message=lambda view: (
            f"The held-out loss was lowest, {short(best_evaluation(view)[1])}, at step {best_evaluation(view)[0]:.0f}"
            f" of {view.step}; it ended at {short(view.series['eval_loss'].last)}."
        ),
        remedies=lambda view: fewer_steps(view, best_evaluation(view), "the held-out loss was lowest"),
        when=(
            "The lowest held-out loss lies in the first half of at least six evaluations, with four after it, and the"
            " last two are above it by 2 % and by twice what it ever moved the other way."
        ),
        why="What came after it cost time, and may have cost what the model could do before.",
        remedy="Train for fewer steps, or take a checkpoint from about then.",
        source="SageMaker Debugger Overtraining",
    ),
    Rule(
        code="OPT014",
        title="Held-out completions earn less than at the start",
        stage="train",
        symptom="forgetting",
        level="results",
        needs=("plan/scored_rows", "eval_reward", "eval_reward_std"),
        window=1,
        least=1,
        share=1.0,
        test=held_out_reward_falls,
        severe=lambda view: reward_lost(view) > 0.5 * abs(view.series["eval_reward"].first),
        message=lambda view: (
            f"Completions of {view['plan/scored_rows']} held-out prompts earned"
            f" {short(view.series['eval_reward'].first)} at step {view.series['eval_reward'].steps[0]:.0f} and earn"
            f" {short(view['eval_reward'])} now, {short(reward_lost(view))} less, with a standard error of"
            f" {short(reward_doubt(view))}."
        ),
        remedies=reward_remedies,
        follows_from=("OPT003", "OPT004", "OPT006", "OPT007", "OPT009", "ENG001", "ENG003"),
        when=(
            "An evaluation earns less than the run's first one, by three standard errors (with rollouts, and by 30"
            " %); or by one and a half at two evaluations running (up to twice that, the more evaluations there have"
            " been); or by one where each evaluation since the first, three at the least, earned less than the one"
            " before. Of 8 held-out rows at least. Half of what was earned: an error."
        ),
        why=(
            "What the loss asks for takes the model away from the task that the reward measures: updates that are too"
            " large, nothing that holds the policy where it was, or data about something else."
        ),
        remedy=(
            "Lower learning_rate, hold the policy nearer to where it began, go back to the best checkpoint. Where"
            " updates are of a usual size and a run learns from rewards, look at what they pay for."
        ),
        source="own judgement; standard errors as if evaluations were independent",
    ),
]
