"""Gradients and updates, of every method. Imports no torch."""

from __future__ import annotations

import statistics

from ft_host.diagnostics.remedies import LOSS_FALLS, calm, lower_rate, raise_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.losses import SETTLE, is_learnt, loss_fall, solved
from ft_host.diagnostics.sizes import has_new_weights
from ft_host.diagnostics.view import View, percent, rounded, short

LARGE, LARGE_NEW, LARGE_LORA = 0.04, 0.1, 0.3  # updates as a share of weights; half of an adapter's are 0 at first
LARGE_POLICY = 0.02  # of methods that learn from rewards or preferences, from weights that can do something
SMALL, SMALL_LORA = 2e-4, 5e-4
SMALL_ROLLOUTS = 5e-6  # methods that learn from rewards take small steps


# ---------------------------------------------------------------- gradients


def usual_norm(view: View) -> float | None:
    """The larger of the median of the last 50 norms that aren't 0 and the run's own beginning: where most steps have no
    signal, one that has is no spike."""
    baseline = view.baseline("grad_norm")
    recent = [value for value in view.recent("grad_norm", 51)[:-1] if value > 0]
    return max(baseline, statistics.median(recent)) if baseline is not None and len(recent) >= SETTLE else None


def norm_jumps(view: View) -> bool | None:
    usual = usual_norm(view)
    if usual is None or is_learnt(view):
        return None
    # below the limit of clipping a spike does nothing
    return view["grad_norm"] > max(10 * usual, view.config.max_grad_norm or 0.0)


def norm_vanishes(view: View) -> bool | None:
    flat = view.facts.get("plan/no_signal_metric")  # the method says which metric tells of groups without a signal
    if view["learning_rate"] == 0 or solved(view) or (flat is not None and view.get(flat, 0) > 0.5):
        return None  # nothing to learn from in this step, or nothing left to learn
    baseline = view.baseline("grad_norm")
    return view["grad_norm"] < max(1e-5, 1e-4 * (baseline or 0))


def vanished_remedies(view: View) -> list[Remedy]:
    look = Remedy(
        why="Look at which tokens are supervised, and whether the loss depends on the weights that are trained"
    )
    once = view.first("grad_norm", 5) > 0.01  # the loss was pushed to where it is flat
    return [lower_rate(view, 10), *warm_up(view), look] if once else [look]


def is_clipped(view: View) -> bool | None:
    limit = view.config.max_grad_norm
    return view["grad_norm"] > limit if limit and view.warmed_up else None


# ---------------------------------------------------------------- updates


def update_limits(view: View) -> tuple[float, float]:
    """Between which a ratio is usual."""
    if view.config.use_peft:
        return SMALL_LORA, LARGE_LORA
    if view.by_rollout or "beta" in vars(view.config):
        return SMALL, LARGE_POLICY
    tokens = "start/mean_token_accuracy" in view.facts
    new = has_new_weights(view) or (tokens and "model/vocab_size" not in view.facts)
    return SMALL, LARGE_NEW if new else LARGE


def reward_rises(view: View) -> bool:
    """Whether the last ten rewards are above the first ten by more than their noise."""
    if not view.count(view.reward):
        return False
    return view.mean(view.reward, 10) - view.first(view.reward, 10) > view.noise(view.reward) / 2


def update_is_off(view: View) -> bool | None:
    small, large = update_limits(view)
    ratio = view["update_ratio"]
    if ratio > large:
        return True
    if view["learning_rate"] < 0.5 * view.config.learning_rate:
        return None  # a warm-up begins at 0, and a schedule may end there
    peak = max(view.recent("update_ratio"))
    if view.by_rollout:
        return None if view.step < view.warmup_steps + SETTLE else peak < SMALL_ROLLOUTS and not reward_rises(view)
    share = loss_fall(view)
    return None if share is None or solved(view) else peak < small and share < 0.03


def is_small(view: View) -> bool:
    return not view["update_ratio"] > update_limits(view)[1]


def update_message(view: View) -> str:
    ratio = view["update_ratio"]
    if ratio > update_limits(view)[1]:
        return (
            f"An update changes the weights by {percent(ratio)} of their size (usual: 0.01 to 1 %): it throws away what"
            " they hold."
        )
    fall = percent(max(loss_fall(view) or 0.0, 0.0))
    result = "the reward doesn't rise" if view.by_rollout else f"the loss has fallen by {fall} since the start"
    return (
        f"An update changes the weights by {short(ratio)} of their size, and {result}: the steps are too small to"
        " learn by."
    )


def update_remedies(view: View) -> list[Remedy]:
    """The step to an update of a usual size."""
    if view["update_ratio"] > update_limits(view)[1]:
        return [lower_rate(view, 10), *warm_up(view)]
    if not view["update_ratio"]:
        return [Remedy(why="Look at whether the optimizer holds the weights that are trained: its steps change none")]
    return [raise_rate(view, 10, LOSS_FALLS)]


RULES = [
    Rule(
        code="OPT001",
        title="The gradient has spikes",
        stage="train",
        symptom="divergence",
        level="gradients",
        mutes=("OPT003",),
        needs=("grad_norm",),
        share=0.06,
        test=norm_jumps,
        message=lambda view: (
            f"The gradient norm was more than ten times its usual {short(usual_norm(view))} {view.often}; "
            f"it is {short(view['grad_norm'])} now."
        ),
        remedies=calm,
        when=(
            "The gradient norm is over ten times the median of the last 50 steps (and of steps 5 to 25) in 6 % of 50"
            " steps."
        ),
        why=(
            "Single rows, or weights that have gone where the loss is steep, pull far more than all others. Clipping"
            " bounds what one step does; often repeated it is a learning rate at the edge of what is stable."
        ),
        remedy="Set max_grad_norm to 1, lower learning_rate, look at the rows of these steps.",
        source="ZClip (arXiv 2504.02507); axolotl docs/training_stability; made relative to the run",
    ),
    Rule(
        code="OPT002",
        title="The gradient has vanished",
        stage="train",
        symptom="no_signal",
        level="gradients",
        needs=("grad_norm", "loss", "learning_rate"),
        share=0.5,
        least=15,
        test=norm_vanishes,
        message=lambda view: (
            f"The gradient norm was next to 0 {view.often} ({short(view['grad_norm'])} now): nothing is learnt."
        ),
        remedies=vanished_remedies,
        mutes=("standstill",),
        when=(
            "The gradient norm is below 1e-5, or a ten-thousandth of that of steps 5 to 25, in half of the last 50"
            " steps; not where the loss is next to 0 since the task is learnt, nor where rewards of all groups are"
            " equal."
        ),
        why="Nothing supervised, a loss that is constant, or weights that are cut off from it.",
        remedy="Look at the data and the loss; a higher learning rate doesn't help where there is no gradient.",
        source="SageMaker Debugger VanishingGradient; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT007",
        title="Updates are too large or too small",
        stage="train",
        symptom=lambda view: "divergence" if view["update_ratio"] > update_limits(view)[1] else "no_learning",
        level="updates",
        later=("standstill", is_small),
        needs=("update_ratio", "learning_rate"),
        window=3,
        least=1,
        share=0.3,
        test=update_is_off,
        message=update_message,
        remedies=update_remedies,
        mutes=("gradients", "loss", "OPT005", "MOE001", "MOE002", "MOE003"),
        when=(
            f"The norm of an update is over {LARGE} of that of the weights ({LARGE_NEW} of new ones, {LARGE_LORA} of an"
            f" adapter's, {LARGE_POLICY} of a method that learns from rewards or preferences); or it has never been"
            f" over {SMALL} ({SMALL_LORA}) and the loss has fallen by less than 3 % in 20 steps at the full learning"
            f" rate. With rollouts: never over {SMALL_ROLLOUTS} while the reward doesn't rise."
        ),
        why=(
            "What an optimizer of Adam's kind changes depends on the learning rate, not on the size of the gradient."
            " Far more than a hundredth of the weights a step destroys what they hold, far less than a ten-thousandth"
            " takes forever."
        ),
        remedy="Change learning_rate by a factor of ten.",
        source="SageMaker Debugger WeightUpdateRatio; limits by own judgement, on small and large models",
    ),
    Rule(
        code="OPT008",
        title="Gradients are clipped all the time",
        stage="train",
        level="notes",
        needs=("grad_norm",),
        severity="info",
        least=40,
        share=0.9,
        test=is_clipped,
        message=lambda view: (
            f"The gradient norm (median {short(view.median('grad_norm'))}) was above max_grad_norm "
            f"{short(view.config.max_grad_norm)} {view.often}: each step is scaled to the same size."
        ),
        remedies=lambda view: [
            Remedy(
                why=(
                    f"Raise max_grad_norm from {short(view.config.max_grad_norm)} to"
                    f" {short(rounded(3 * view.median('grad_norm')))}"
                ),
                patch={"max_grad_norm": rounded(3 * view.median("grad_norm"))},
            )
        ],
        when="After warm-up, the gradient norm is above max_grad_norm in 90 % of the last 50 steps.",
        why=(
            "Clipping is for the odd step. Where it is always on, rows with large gradients count for less; with Adam"
            " it hardly changes the step. Many runs learn well so."
        ),
        remedy="Raise max_grad_norm, where a run doesn't learn as it should.",
        source="own judgement",
    ),
]
