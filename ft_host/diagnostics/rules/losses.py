"""What the loss says of the learning rate and the data, of every method. Imports no torch.

The loss of a method that learns from rollouts isn't judged: it is around 0 whatever is learnt, an identity where it is
made of advantages. Where there is a held-out loss it outweighs that of the steps, whose rows are others each time.
"""

from __future__ import annotations

import math
import statistics

from ft_host.diagnostics.remedies import LOSS_FALLS, calm, lower_rate, raise_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

SOLVED = 0.02  # of the loss that the run began with: little is left to learn, and gradients are small
SETTLE = 20  # steps at the full learning rate before it is asked whether anything is learnt
NOTHING = 0.05  # of a loss: what is below, and changes by less, is that of a task that has been learnt
USUAL_UPDATE = 1e-3  # of pretrained weights


# ---------------------------------------------------------------- for these rules and others


def first_loss(view: View) -> float:
    """The loss that the run began with. (A run that was resumed has its metrics from the first step.)"""
    return view.first("loss", 10)


def solved(view: View) -> bool:
    """Whether a loss that was something is next to nothing now."""
    return 0 <= view.mean("loss", 5) < SOLVED * view.first("loss", 5)


def is_learnt(view: View) -> bool:
    """Whether the loss has been next to nothing all along, where what a single row adds looks large. Not with
    rollouts."""
    return not view.by_rollout and view.first("loss", 5) < NOTHING / 2 and 0 <= view.mean("loss", 10) < NOTHING / 2


def loss_fall(view: View) -> float | None:
    """By which share of itself the loss has fallen; of held-out rows where that is known, since they stay the same.
    None where it can't be told yet, or says nothing."""
    if view.by_rollout or view.step < view.warmup_steps + SETTLE or view.count("loss") < SETTLE + 10:
        return None
    start, now = first_loss(view), view.mean("loss", 20)
    if not start > NOTHING:
        return None  # little to learn, or a loss that can be negative
    evals = view.series.get("eval_loss")
    if evals is None or len(evals) < 2 or not evals.first > 0:
        return 1 - now / start
    later = evals.finite()[1:]
    held_out = 1 - min(later, default=math.inf) / evals.first
    still = max(later, default=math.inf) < 1.01 * evals.first and held_out < 0.01
    if still and evals.steps[-1] >= view.warmup_steps + SETTLE:
        return held_out  # a fall of the other is one of noise
    return max(1 - now / start, held_out)


# ---------------------------------------------------------------- tests and remedies


def loss_jumps(view: View) -> bool | None:
    """The last four losses are all far above what came before, by the run's own measure. A quarter of the loss that the
    run began with, at least: next to 0 a jump is nothing."""
    values = view.recent("loss", 104)
    if view.by_rollout or len(values) < 9:
        return None
    before, last = values[:-4], values[-4:]
    usual = statistics.median(before)
    spread = statistics.median(abs(value - usual) for value in before)
    rise = min(last) - usual
    return min(last) > max(1.5 * usual, usual + 5 * spread) and rise > max(0.25 * abs(view.first("loss", 5)), NOTHING)


def loss_stays_high(view: View) -> bool | None:
    if view.by_rollout or view.count("loss") < 2 * SETTLE or not view.warmed_up:
        return None
    first = list(view.series["loss"].values[:SETTLE])
    return view["loss"] > min(10.0, max(first)) + NOTHING


def loss_stays(view: View) -> bool | None:
    share = loss_fall(view)
    if share is None or solved(view):
        return None
    return share < 0.01


def stays_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at whether completions fit their prompts: noise can't be learnt")
    updates = view.recent("update_ratio")
    return [look] if updates and max(updates) > USUAL_UPDATE else [raise_rate(view, 10, LOSS_FALLS), look]


def lowest_begun(view: View) -> float:
    """Of the first ten losses and the first three, since a loss may have been thrown up within ten."""
    return min(first_loss(view), view.first("loss", 3))


def loss_rises(view: View) -> bool | None:
    if view.by_rollout or not view.warmed_up or view.count("loss") < SETTLE or not first_loss(view) > 0:
        return None
    lowest = lowest_begun(view)
    doubt = 3 * view.noise("loss", 20) / math.sqrt(10)  # of a mean of ten
    return view.mean("loss", 10) > lowest + max(0.1 * lowest, NOTHING, doubt)


def memorised(view: View) -> bool | None:
    if view.by_rollout or view["epoch"] > 1 or view.count("loss") < 10 or view.first("loss", 5) < 0.5:
        return None
    held_out = view.get("eval_loss")
    return view.mean("loss", 10) < 0.05 and (held_out is None or held_out > 3 * view.mean("loss", 10) + 0.02)


RULES = [
    Rule(
        code="OPT003",
        title="The loss has jumped up",
        stage="train",
        symptom="divergence",
        level="loss",
        needs=("loss",),
        window=10,
        least=1,
        share=0.1,
        test=loss_jumps,
        message=lambda view: (
            f"The loss has been above {short(min(view.recent('loss', 4)))} for four steps, after "
            f"{short(statistics.median(view.recent('loss', 104)[:-4]))} before."
        ),
        remedies=calm,
        mutes=("OPT006", "OPT005"),
        when=(
            "Four losses running are over 1.5 times the median of the 100 before, five of its spreads above it, and a"
            " quarter of the run's first loss above it."
        ),
        why=(
            "The weights were thrown out of where they were: a learning rate that is too high, mostly at the end of the"
            " warm-up, or rows that are unlike the others."
        ),
        remedy="Lower learning_rate, warm up longer, go back to a checkpoint from before.",
        source="llm-foundry KillLossSpike; with the run's own spread",
    ),
    Rule(
        code="OPT004",
        title="The loss stays above where it began",
        stage="train",
        symptom="divergence",
        level="loss",
        needs=("loss",),
        share=0.5,
        test=loss_stays_high,
        message=lambda view: (
            f"The loss was above the highest of the first {SETTLE} steps "
            f"({short(max(view.series['loss'].values[:SETTLE]))}) {view.often}: the run has diverged."
        ),
        remedies=lambda view: [lower_rate(view, 10), *warm_up(view)],
        severity="error",
        mutes=("OPT003", "OPT005", "OPT006"),
        when="After warm-up, half of the last 50 losses are above 10, or above the highest of the first 20.",
        why="The run has diverged, and doesn't come back.",
        remedy="Start again with a lower learning_rate.",
        source="llm-foundry KillLossSpike",
    ),
    Rule(
        code="OPT005",
        title="The loss doesn't fall",
        stage="train",
        symptom="no_learning",
        level="standstill",
        needs=("loss",),
        window=20,
        least=10,
        share=0.6,
        test=loss_stays,
        message=lambda view: (
            f"After {view.step} steps the loss is {short(view.mean('loss', 20))}; it began at {short(first_loss(view))}"
            f" and has fallen by {percent(max(loss_fall(view) or 0.0, 0.0))}."
        ),
        remedies=stays_remedies,
        when=(
            "20 steps after warm-up and later, the mean of 20 losses is less than 1 % below that of the first ten, and"
            " the held-out loss has not fallen by 1 % either; not for methods that learn from rollouts."
        ),
        why=(
            "The learning rate is too low, the weights that are trained don't matter, or there is nothing to be learnt"
            " in the data."
        ),
        remedy=(
            "Raise learning_rate (full training of a pretrained model: 1e-5 to 5e-5, LoRA: 1e-4 to 3e-4), look at the"
            " data."
        ),
        source="SageMaker Debugger LossNotDecreasing; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT006",
        title="The learning rate is too high",
        stage="train",
        symptom="divergence",
        level="loss",
        needs=("loss", "grad_norm"),
        window=20,
        least=10,
        share=0.5,
        test=loss_rises,
        message=lambda view: (
            f"At the full learning rate the loss is {short(view.mean('loss', 10))}, above the "
            f"{short(lowest_begun(view))} that it began with; the gradient norm is {short(view.mean('grad_norm', 10))}."
        ),
        remedies=lambda view: [lower_rate(view, 5), *warm_up(view)],
        mutes=("OPT005",),
        when=(
            "After warm-up, the mean of ten losses is a tenth (and three of its standard errors) above that of the"
            " first ten."
        ),
        why="Updates are larger than the region in which the gradient says anything.",
        remedy="Lower learning_rate by 2 to 5 times, warm up over 5 to 10 % of the steps.",
        source="axolotl docs/training_stability",
    ),
    Rule(
        code="OPT012",
        title="The loss is next to 0 in the first epoch",
        stage="train",
        level="notes",
        needs=("loss", "epoch", "mean_token_accuracy"),
        severity="info",
        window=20,
        least=5,
        share=0.8,
        test=memorised,
        message=lambda view: (
            f"The loss is {short(view.mean('loss', 10))} at epoch {view['epoch']:.2f}, before any row was seen twice:"
            " rows repeat each other, the answers stand in the prompts, or the task is easy."
        ),
        remedies=lambda view: [
            Remedy(why="Look at the rows for duplicates and for answers in prompts, and set an eval_dataset")
        ],
        when=(
            "The mean of ten losses is below 0.05 within the first epoch, and there is no held-out loss or one of over"
            " three times that."
        ),
        why="Real text can't be predicted so well by one look. A task with a rule can, and then held-out rows show it.",
        remedy="Look at the data.",
        source="own judgement",
    ),
]
