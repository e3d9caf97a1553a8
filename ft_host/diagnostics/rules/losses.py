"""What the loss says of the learning rate and the data, of every method. Imports no torch."""

from __future__ import annotations

import math
import statistics

from ft_host.diagnostics.remedies import LOSS_FALLS, calm, clipped, lower_rate, raise_rate, warm_up
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.loss_trends import (
    NOTHING,
    SETTLE,
    first_loss,
    full_ratio,
    held_out_is_fine,
    in_order,
    loss_fall,
    may_be_too_high,
    solved,
)
from ft_host.diagnostics.spread import fallen, risen, trend
from ft_host.diagnostics.view import View, percent, short, went

KNOWN = 0.9  # of the held-out loss: rows below it at the start were learnt before

# ---------------------------------------------------------------- tests and remedies


def loss_jumps(view: View) -> bool | None:
    """The last four losses are above all of the forty before: of losses that don't change, four in a row are so once in
    a hundred thousand times. By half at least, by five spreads, and by a quarter of the loss that the run began with:
    next to 0 a jump is nothing. Before there are twenty, losses must have grown throughout: rows of two kinds may not
    have shown both yet. Where rows come in an order, later ones may be harder: above what guessing costs."""
    values = view.recent("loss", 44)
    if view.by_rollout or len(values) < 9:
        return None
    before, last = values[:-4], values[-4:]
    usual, lowest = statistics.median(before), min(last)
    spread = statistics.median(abs(value - usual) for value in before)
    if not lowest > max(
        1.5 * usual, usual + 5 * spread, 1.1 * max(before), guessing(view) if in_order(view) else -math.inf
    ):
        return False
    grows = len(before) >= SETTLE or trend(values) > 3.5
    return grows and lowest - usual > max(0.25 * abs(view.first("loss", 5)), NOTHING)


def guessing(view: View) -> float:
    """The loss of a model of tokens that thinks all of them as likely; of other losses three times the highest of the
    first twenty."""
    if "model/vocab_size" in view.facts and "start/mean_token_accuracy" in view.facts:
        return math.log(view["model/vocab_size"])
    return 3 * max(view.series["loss"].values[:SETTLE])


def jump_remedies(view: View) -> list[Remedy]:
    """Updates of a usual size throw no weights, and rows that come in an order may be of another kind from there on."""
    if full_ratio(view) is not None and may_be_too_high(view) and not in_order(view):
        return calm(view)
    return [Remedy(why="Look at the rows of these steps: are they unlike those before?"), *clipped(view)]


def highest_begun(view: View) -> float:
    """The highest of the first twenty losses; of tokens, a little more than guessing costs, if that is less."""
    first = list(view.series["loss"].values[:SETTLE])
    vocabulary = view.get("model/vocab_size")
    if vocabulary is None or "start/mean_token_accuracy" not in view.facts:
        return max(first)
    return min(max(first), max(1.3 * math.log(vocabulary), *first[:3]))


def highest_is(view: View) -> str:
    first = max(view.series["loss"].values[:SETTLE])
    return f"the highest of the first {SETTLE} steps" if highest_begun(view) >= first else "more than guessing costs"


def loss_stays_high(view: View) -> bool | None:
    if view.by_rollout or view.count("loss") < 2 * SETTLE or not view.warmed_up:
        return None
    if in_order(view) and view.count("eval_loss") < 2:
        return None  # later rows may be harder
    return view["loss"] > highest_begun(view) + NOTHING and not held_out_is_fine(view)


def loss_stays(view: View) -> bool | None:
    """By less than 1 %, and by less than 3 % beyond doubt; not where updates are of a usual size: what they bring is
    small then since little is left to learn, and no rate changes that. A loss that rises does something else."""
    found = loss_fall(view)
    if found is None or solved(view) or learnt_before(view) or (in_order(view) and view.count("eval_loss") < 2):
        return None
    share, doubt = found
    small = full_ratio(view) is None or not may_be_too_high(view)
    return small and -0.03 < share < 0.01 and share + doubt < 0.03


def learnt_before(view: View) -> bool:
    """Whether the rows were known far better than held-out ones from the start: by a model that was tuned on them."""
    evals, first = view.series.get("eval_loss"), view.opening("loss")
    return bool(evals and first) and sum(first) / len(first) < KNOWN * evals.first


def held_out_too(view: View) -> str:
    evals = view.recent("eval_loss", 1000)
    return f", and the held-out loss {went(evals[0], min(evals[1:]))} at its lowest" if len(evals) > 1 else ""


def stays_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at whether completions fit their prompts: noise can't be learnt")
    return [raise_rate(view, 10, LOSS_FALLS), look]


def begun(view: View) -> list[float]:
    """The first ten losses, or the first three, where it was thrown up within ten."""
    first = view.opening("loss")
    return first[:3] if len(first) > 3 and min(first[3:]) > max(first[:3]) else first


def loss_rises(view: View) -> bool | None:
    """A tenth above where it began, beyond doubt, and not on its way down again."""
    if view.by_rollout or not view.warmed_up or view.count("loss") < SETTLE + 10 or not may_be_too_high(view):
        return None
    first, last = begun(view), view.recent("loss", 20)
    if not first or not sum(first) > 0:
        return None
    if held_out_is_fine(view) or (in_order(view) and view.count("eval_loss") < 2):
        return False  # other rows
    start, now = sum(first) / len(first), sum(last) / len(last)
    return now > start + max(0.1 * start, NOTHING) and risen(first, last) and not fallen(last[:10], last[10:], 3.0)


def memorised(view: View) -> bool | None:
    if view.by_rollout or view["epoch"] > 1 or view.count("loss") < 10 or view.first("loss", 5) < 0.5:
        return None
    held_out = view.get("eval_loss")
    return view.mean("loss", 10) < 0.05 and (held_out is None or held_out > 3 * view.mean("loss", 10) + 0.02)


def updates_too(view: View) -> str:
    ratio = full_ratio(view)
    return "" if ratio is None else f", at updates of {percent(ratio)} of the weights"


def repeated(view: View) -> str:
    """Why a loss may be next to 0 by then, by what is known of the rows."""
    copies = view.get("data/duplicate_rows")
    known = f" ({percent(copies)} are copies)" if copies is not None else ""
    return f"either rows repeat each other{known}, or the answers stand in the prompts, or the task is easy"


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
            f"The loss was {short(min(view.recent('loss', 4)))} or more in each of the last four steps, and"
            f" {short(statistics.median(view.recent('loss', 44)[:-4]))} before (median)."
        ),
        remedies=jump_remedies,
        mutes=("OPT006", "OPT005"),
        when=(
            "Four losses running are a tenth above each of the 40 before, over 1.5 times their median, five of its"
            " spreads above it, and a quarter of the run's first loss above it; with train_sampling_strategy:"
            " sequential, above the loss of guessing as well."
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
            f"The loss was above {short(highest_begun(view))}, {highest_is(view)}, {view.often}; it is"
            f" {short(view['loss'])} now."
        ),
        remedies=lambda view: [lower_rate(view, 10), *warm_up(view)],
        severity="error",
        mutes=("OPT003", "OPT005", "OPT006"),
        when=(
            "After warm-up, half of the last 50 losses are above the highest of the first 20 (of tokens, above 1.3 ln V"
            " if that is less), while held-out rows don't say otherwise."
        ),
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
            f"In {view.step} steps the loss {went(first_loss(view), view.mean('loss', 20))}, as a mean of the first ten"
            f" steps and of the last twenty{held_out_too(view)}."
        ),
        remedies=stays_remedies,
        when=(
            "20 steps after warm-up and later, the mean of 20 losses is less than 1 % below that of the first ten, less"
            " than 3 % with two standard errors added, and the held-out loss has not fallen by 1 % either; updates are"
            " below 0.1 % of the weights (0.5 % of an adapter's). Not for methods that learn from rollouts, nor where"
            " the rows were known from the start (a first loss a tenth below that of held-out rows)."
        ),
        why=(
            "The learning rate is too low, the weights that are trained don't matter, or there is nothing to be learnt"
            " in the data. Where updates are of a usual size, little is left to learn, and no rate changes that."
        ),
        remedy=(
            "Raise learning_rate (full training of a pretrained model: 1e-5 to 5e-5, LoRA: 1e-4 to 3e-4), look at the"
            " data."
        ),
        source="SageMaker Debugger LossNotDecreasing; axolotl docs/training_stability",
    ),
    Rule(
        code="OPT006",
        title="The loss has risen",
        stage="train",
        symptom="divergence",
        level="loss",
        needs=("loss", "grad_norm"),
        window=20,
        least=10,
        share=0.5,
        test=loss_rises,
        message=lambda view: (
            f"The loss {went(statistics.fmean(begun(view)), view.mean('loss', 20))} since the first steps, as a mean of"
            f" twenty, and the gradient norm is {short(view.mean('grad_norm', 10))}{updates_too(view)}."
        ),
        remedies=lambda view: [lower_rate(view, 5), *warm_up(view)],
        mutes=("OPT005",),
        when=(
            "After warm-up, the mean of 20 losses is a tenth above that of the first ten (the first three, where all"
            " after them are higher), by four standard errors and in their order, and isn't falling; updates are 0.1 %"
            " of the weights or more (0.5 % of an adapter's), and held-out rows don't say otherwise."
        ),
        why=("The learning rate is too high: updates are larger than the region in which the gradient says anything."),
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
            f" {repeated(view)}."
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
