"""Gradients: spikes, nothing at all, and clipping that leaves nothing of them. Of every method. Imports no torch."""

from __future__ import annotations

import math
import statistics

from ft_host.diagnostics.remedies import calm, clipped, lower_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.loss_trends import SETTLE, has_fallen, is_learnt, loss_fall, may_be_too_high, solved
from ft_host.diagnostics.view import BASELINE, View, percent, rounded, short

TIGHT = 0.1  # a limit of clipping that is below what is usual by ten
NONE = 3  # steps without any gradient from the first one on, which no chance makes


def usual_norm(view: View) -> float | None:
    """The larger of the median of the last 50 norms that aren't 0 and the run's own beginning: where most steps have no
    signal, one that has is no spike."""
    baseline = view.baseline("grad_norm")
    recent = [value for value in view.recent("grad_norm", 51)[:-1] if value > 0]
    return max(baseline, statistics.median(recent)) if baseline is not None and len(recent) >= SETTLE else None


def norm_jumps(view: View) -> bool | None:
    """Ten times the usual, and further than the run's own spread reaches, which is one of factors, and wide where
    batches are small or rows have great weight."""
    usual = usual_norm(view)
    if not usual or is_learnt(view):
        return None
    factors = sorted(math.log(value / usual) for value in view.recent("grad_norm", 101)[:-1] if value > 0)
    wide = 1.4826 * statistics.median(abs(factor) for factor in factors)
    early = max(view.series["grad_norm"].values[BASELINE])
    # below the limit of clipping a spike does nothing
    limit = max(10 * usual, usual * math.exp(min(6 * wide, 50.0)), 2 * early, view.config.max_grad_norm or 0.0)
    return view["grad_norm"] > limit


def spike_remedies(view: View) -> list[Remedy]:
    if may_be_too_high(view):
        return calm(view)
    return [*clipped(view), Remedy(why="Look at the rows of these steps")]


def norm_vanishes(view: View) -> bool | None:
    flat = view.facts.get("plan/no_signal_metric")  # the method says which metric tells of groups without a signal
    if view["learning_rate"] == 0 or solved(view) or (flat is not None and view.get(flat, 0) > 0.5):
        return None  # nothing to learn from in this step, or nothing left to learn
    norms = view.recent("grad_norm", 15)
    if not view.by_rollout and view["loss"] != 0 and len(norms) >= NONE and view.series["grad_norm"].most == 0:
        return True  # a loss that is something, and no gradient at all from the first step: no need to wait
    if len(norms) < 15:
        return None
    return statistics.median(norms) < max(1e-5, 1e-4 * (view.baseline("grad_norm") or 0))


def vanished_remedies(view: View) -> list[Remedy]:
    look = Remedy(
        why="Look at which tokens are supervised, and whether the loss depends on the weights that are trained"
    )
    once = view.first("grad_norm", 5) > 0.01  # the loss was pushed to where it is flat
    return [lower_rate(view, 10), *warm_up(view), look] if once else [look]


def cuts_to_nothing(view: View) -> bool | None:
    """A limit far below the usual ones, and gradients of a hundred times that."""
    limit = view.config.max_grad_norm
    return None if not limit else limit <= TIGHT and view["grad_norm"] > 100 * limit


def is_clipped(view: View) -> bool | None:
    """Also where the size of a gradient is that of a step, and the loss doesn't fall: with SGD."""
    limit, slow = view.config.max_grad_norm, loss_fall(view) is not None and not has_fallen(view)
    if limit and slow and view.config.optim == "sgd" and view["grad_norm"] > limit:
        return True
    return cuts_to_nothing(view)


def clip_remedies(view: View) -> list[Remedy]:
    now, usual = view.config.max_grad_norm, max(view.median("grad_norm"), view["grad_norm"])
    new = max(1.0, rounded(3 * usual)) if view.config.optim == "sgd" else 1.0
    return [
        Remedy(why=f"Raise max_grad_norm from {short(now)} to {short(new)}", patch={"max_grad_norm": new}, again=True)
    ]


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
        remedies=spike_remedies,
        when=(
            "The gradient norm is over ten times the median of the last 50 steps (and of steps 5 to 25), six times as"
            " far from it as norms of this run usually are (counted in factors), twice the highest of steps 5 to 25,"
            " and above max_grad_norm, in 6 % of 50 steps."
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
        least=1,
        test=norm_vanishes,
        message=lambda view: (
            f"The gradient norm is next to 0: {short(statistics.median(view.recent('grad_norm', 15)))} as the median of"
            f" the last {len(view.recent('grad_norm', 15))} steps. No weight is moved by it."
        ),
        remedies=vanished_remedies,
        mutes=("standstill",),
        when=(
            "The median of 15 gradient norms is below 1e-5, or a ten-thousandth of that of steps 5 to 25, in half of"
            " the last 50 steps; or each is 0 from the first on, for three steps. Not where the loss is next to 0"
            " since the task is learnt, nor where rewards of all groups are equal."
        ),
        why="Nothing supervised, a loss that is constant, or weights that are cut off from it.",
        remedy="Look at the data and the loss; a higher learning rate doesn't help where there is no gradient.",
        source="SageMaker Debugger VanishingGradient; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT008",
        title="Gradients are clipped to next to nothing",
        stage="train",
        level="updates",
        needs=("grad_norm",),
        least=3,
        share=0.9,
        test=is_clipped,
        message=lambda view: (
            f"The gradient norm ({short(view['grad_norm'])} now) was above max_grad_norm"
            f" {short(view.config.max_grad_norm)} {view.often}: this gradient is scaled to"
            f" {percent(view.config.max_grad_norm / view['grad_norm'])} of itself."
        ),
        remedies=clip_remedies,
        mutes=("OPT005", "OPT007"),
        when=(
            f"max_grad_norm is {TIGHT} or less and gradient norms are over a hundred times that, in 90 % of the steps,"
            " from the first ones on; or with SGD, norms are above it in 90 % of the last 50 steps and the loss hasn't"
            " fallen. Gradients above a usual limit are no trouble: with an optimizer of Adam's kind clipping hardly"
            " changes the step."
        ),
        why=(
            "Clipping is for the odd step. Gradients that are scaled to a hundredth come near the epsilon that Adam"
            " adds to their size, and those of SGD are the step itself."
        ),
        remedy="Set max_grad_norm to 1, or to a few times the usual norm.",
        source="own judgement",
    ),
]
