"""The loss of held-out rows beside that of the steps. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.losses import NOTHING
from ft_host.diagnostics.rules.numbers import lower_rate
from ft_host.diagnostics.view import View, rounded, short


def best_evaluation(view: View) -> tuple[float, float]:
    """(step, loss) of the lowest held-out loss."""
    return view.series["eval_loss"].best(-1) or (math.nan, math.nan)


def overfits(view: View) -> bool | None:
    """The held-out loss is a tenth above its best twice, or a quarter once, or has risen three times running, while
    that of the steps falls. Not where held-out completions still get better: a model that is sure of itself loses more
    by the few that it gets wrong.
    """
    values = view.recent("eval_loss", 1000)
    if len(values) < 3 or view.by_rollout:
        return None
    step, best = best_evaluation(view)
    rewards = view.recent("eval_reward", 1000)
    if rewards and rewards[-1] >= max(rewards) > rewards[0]:
        return False
    losses = view.series["loss"]
    then = [value for at, value in zip(losses.steps, losses.values, strict=True) if step - 10 < at <= step]
    falls = bool(then) and view.mean("loss", 10) < sum(then) / len(then)
    risen = len(values) > 3 and values[-1] > values[-2] > values[-3] > values[-4] and values[-1] > 1.02 * best
    above = values[-1] > 1.25 * best or min(values[-2:]) > 1.1 * best
    return falls and values[-1] - best > NOTHING / 2 and (above or risen)


def fewer_steps(view: View) -> Remedy:
    step, _ = best_evaluation(view)
    why = f"Stop at step {step:.0f}, where the held-out loss was lowest"
    if view.config.max_steps > 0:
        return Remedy(why=why, patch={"max_steps": max(int(step), 1)}, again=True)
    share = step / view.total_steps if view.total_steps else 0.5
    return Remedy(
        why=why, patch={"num_train_epochs": rounded(max(view.config.num_train_epochs * share, 0.01))}, again=True
    )


def overfit_remedies(view: View) -> list[Remedy]:
    out = [fewer_steps(view), lower_rate(view, 2)]
    if view.config.use_peft and not view.config.lora_dropout:
        out.append(Remedy(why="Set lora_dropout to 0.05", patch={"lora_dropout": 0.05}, again=True))
    elif not view.config.use_peft and not view.config.weight_decay:
        out.append(Remedy(why="Set weight_decay to 0.1", patch={"weight_decay": 0.1}, again=True))
    return [*out, Remedy(why="Train on more rows")]


def went_on_for_nothing(view: View) -> bool | None:
    values = view.recent("eval_loss", 1000)
    if len(values) < 6 or view.by_rollout:
        return None
    best = values.index(min(values))
    return best + 1 <= len(values) / 2 and len(values) - best > 4


RULES = [
    Rule(
        code="OPT009",
        title="The model overfits",
        stage="train",
        needs=("eval_loss", "loss"),
        window=1,
        least=1,
        share=1.0,
        test=overfits,
        message=lambda view: (
            f"The held-out loss has risen from {short(best_evaluation(view)[1])} at step {best_evaluation(view)[0]:.0f}"
            f" to {short(view['eval_loss'])}, while that of the steps went on falling to"
            f" {short(view.mean('loss', 10))}."
        ),
        remedies=overfit_remedies,
        when=(
            "The held-out loss is a quarter above its lowest, or a tenth at two evaluations running, or has risen at"
            " three, while the training loss falls; not while the reward of held-out completions is at its best."
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
        needs=("eval_loss",),
        severity="info",
        test=went_on_for_nothing,
        message=lambda view: (
            f"The held-out loss was lowest, {short(best_evaluation(view)[1])}, at step {best_evaluation(view)[0]:.0f}"
            f" of {view.step}; it ended at {short(view.series['eval_loss'].last)}."
        ),
        remedies=lambda view: [fewer_steps(view)],
        when="The lowest held-out loss lies in the first half of at least six evaluations, with four after it.",
        why="What came after it cost time, and may have cost what the model could do before.",
        remedy="Train for fewer steps, or take a checkpoint from about then.",
        source="SageMaker Debugger Overtraining",
    ),
]
