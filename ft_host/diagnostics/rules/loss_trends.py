"""How the loss of a run has gone, by its own spread, and how large its updates are: what rules ask. Imports no torch.

The loss of a method that learns from rollouts isn't judged: it is around 0 whatever is learnt, an identity where it is
made of advantages. Where there is a held-out loss it outweighs that of the steps, whose rows are others each time.

Nothing here says of one run that its learning rate is too high and of another seed of it that it is too low: the first
is said of updates from `usual_ratio` on alone, the second of those below it.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from ft_host.diagnostics.spread import error_between
from ft_host.diagnostics.view import View

SOLVED = 0.02  # of the loss that the run began with: little is left to learn, and gradients are small
SETTLE = 20  # steps at the full learning rate before it is asked whether anything is learnt
NOTHING = 0.05  # of a loss: what is below, and changes by less, is that of a task that has been learnt
USUAL_UPDATE, USUAL_LORA = 1e-3, 5e-3  # of weights, and of an adapter's


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


def loss_fall(view: View) -> tuple[float, float] | None:
    """By which share of itself the loss has fallen, and what that may be off by: two standard errors. Of held-out rows
    where that is known, since they stay the same. None where it can't be told yet, or says nothing."""
    if view.by_rollout or view.step < view.warmup_steps + SETTLE or view.count("loss") < SETTLE + 10:
        return None
    first, last = view.opening("loss"), view.recent("loss", 20)
    start = sum(first) / len(first) if first else math.nan
    if not start > NOTHING or not last:
        return None  # little to learn, or a loss that can be negative
    share, doubt = 1 - sum(last) / len(last) / start, 2 * error_between(first, last) / start
    evals = view.series.get("eval_loss")
    if evals is None or len(evals) < 2 or not evals.first > 0:
        return share, doubt
    later = evals.finite()[1:]
    held_out = 1 - min(later, default=math.inf) / evals.first
    still = max(later, default=math.inf) < 1.01 * evals.first and held_out < 0.01
    if still and evals.steps[-1] >= view.warmup_steps + SETTLE:
        return held_out, 0.0  # a fall of the other is one of noise
    # One from before says that it had fallen by then, or nothing: it isn't known what the steps since have brought.
    return (share, doubt) if still or share - doubt > held_out else (held_out, 0.0)


def has_fallen(view: View) -> bool:
    """Whether the loss has fallen by more than chance makes, and by more than next to nothing."""
    found = loss_fall(view)
    return found is not None and found[0] > max(0.03, found[1])


def full_ratio(view: View) -> float | None:
    """The largest update of late as a share of the weights, at the full learning rate. None before one was measured."""
    updates, rates = view.series.get("update_ratio"), view.series.get("learning_rate")
    if updates is None or not len(updates):
        return None
    largest = max(view.recent("update_ratio"), default=0.0)
    at = bisect_left(rates.steps, updates.steps[-1]) if rates is not None else 0
    rate = rates.values[at] if rates is not None and at < len(rates) else 0.0
    return max(largest, updates.last * view.config.learning_rate / rate) if rate > 0 else largest


def usual_ratio(view: View) -> float:
    """The update from which on a learning rate may be too high, and below which it isn't: 0.1 % of the weights, 0.5 %
    of those of an adapter, half of which begin at 0. What advises a higher rate has limits below it."""
    return USUAL_LORA if view.config.use_peft else USUAL_UPDATE


def may_be_too_high(view: View) -> bool:
    """Whether updates are large enough for their size to be to blame; also where none has been measured."""
    ratio = full_ratio(view)
    return ratio is None or ratio >= usual_ratio(view)


def in_order(view: View) -> bool:
    """Whether rows come as the data has them: later ones may be harder, or of another kind."""
    return bool(view.config.train_sampling_strategy == "sequential")


def held_out_is_fine(view: View) -> bool:
    """Whether the last evaluation says that what was learnt is still there: a loss that rises is one of other rows."""
    evals = view.series.get("eval_loss")
    return evals is not None and len(evals) > 1 and evals.last < 0.98 * evals.first and evals.last < 1.1 * evals.least
