"""How large a change has to be, by what the run has measured. Imports no torch."""

from __future__ import annotations

import math
import statistics
from typing import Any

from ft_host.diagnostics.view import View

# Updates as a share of the weights, as they are where runs learn: of pretrained weights, of new ones, of an adapter.
USUAL, USUAL_NEW, USUAL_LORA = 1e-3, 2e-2, 1e-2
GROWN = 4.0  # times as much as it looks: new weights that such updates have made larger by then
MOST_LOWER, MOST_RAISE = 1000.0, 10_000.0  # times by which a rate is changed at most
# A run of fewer steps on rows to be learnt goes further in each: up to five times the usual, so that all of them come
# to something.
SHORT_RUN, MOST_SHORT = 600, 5.0
DIFFER = 0.9  # the share of groups in which completions should earn differently
MOST_GENERATIONS = 64
CUT = 0.05  # the share of completions that may be cut short


# ---------------------------------------------------------------- the size of updates


def has_new_weights(view: View) -> bool:
    """Whether the run began with the loss of guessing among all tokens; above it they are sure of wrong ones."""
    if "start/mean_token_accuracy" not in view.facts or "model/vocab_size" not in view.facts:
        return False
    return 0.9 < view["start/loss"] / math.log(view["model/vocab_size"]) < 1.3


def usual_update(view: View) -> float:
    if view.config.use_peft:
        return USUAL_LORA
    return USUAL_NEW if has_new_weights(view) else USUAL


def learns_from_rewards(view: View) -> bool:
    """Or from preferences, beside a reference or without one."""
    return view.by_rollout or "model/reference" in view.facts or "start/rewards/chosen" in view.facts


def wanted_update(view: View) -> float:
    """The update to raise a rate for: the usual one, and more of it in a short run."""
    steps = view.total_steps or view.config.max_steps
    if learns_from_rewards(view) or has_new_weights(view) or steps <= 0:
        return usual_update(view)
    return usual_update(view) * min(max(SHORT_RUN / steps, 1.0), MOST_SHORT)


def strong_updates(view: View) -> bool:
    """Whether an update was five times what is usual where runs learn, so that a lower rate is the first thing to try;
    also where none was measured."""
    ratios = view.series.get("update_ratio")
    return ratios is None or not ratios.values or max(ratios.values) > 5 * usual_update(view)


def update_at_full_rate(view: View) -> float | None:
    """The median of the last three updates as a share of the weights, as it would be at learning_rate itself: with
    optimizers of Adam's kind it is nearly proportional to the rate. None where none was measured."""
    ratios, rates = view.series.get("update_ratio"), view.series.get("learning_rate")
    if ratios is None or rates is None:
        return None
    at = dict(zip(rates.steps, rates.values, strict=True))
    found = [
        ratio * view.config.learning_rate / at[step]
        for step, ratio in zip(ratios.steps[-3:], ratios.values[-3:], strict=True)
        if math.isfinite(ratio) and at.get(step, 0.0) > 0
    ]
    return statistics.median(found) if found else None


def times_too_large(view: View, least: float) -> tuple[float, bool]:
    """By how much to divide the rate, and whether that was measured: `least`, or as much more as updates are above the
    usual. Of new weights, which grow under large updates, these look smaller than they were."""
    now = update_at_full_rate(view)
    grown = GROWN if has_new_weights(view) else 1.0
    off = min(grown * now / usual_update(view), MOST_LOWER) if now else 0.0
    return (off, True) if off > least else (least, False)


def times_too_small(view: View, guess: float) -> tuple[float, bool]:
    """By how much to multiply the rate, and whether that was measured: as much as updates are below what is wanted,
    twice at least; `guess` where none was measured."""
    now = update_at_full_rate(view)
    if not now:
        return guess, False
    return min(max(wanted_update(view) / now, 2.0), MOST_RAISE), True


# ---------------------------------------------------------------- groups of completions


def share_that_differs(rate: float, generations: int) -> float:
    """The share of groups in which some completions succeed and some don't, at a rate of success of each."""
    return 1 - rate**generations - (1 - rate) ** generations


def enough_generations(rate: float) -> int:
    """The fewest completions a prompt of which nine of ten groups differ, MOST_GENERATIONS at most."""
    rate = min(rate, 1 - rate)
    if rate <= 0:
        return MOST_GENERATIONS
    return next((n for n in range(2, MOST_GENERATIONS) if share_that_differs(rate, n) >= DIFFER), MOST_GENERATIONS)


def more_per_prompt(config: Any, least: int) -> dict[str, int] | None:
    """The fields that give a prompt `least` completions or a few more: of as many in a rollout, where four prompts are
    left and it comes out even, else of a rollout that grows by as much. None where it has as many already."""
    fields = vars(config)
    now = fields["num_generations"]
    if least <= now:
        return None
    micro = fields["per_device_train_batch_size"] * fields["num_processes"]
    size, steps = fields.get("generation_batch_size"), fields.get("steps_per_generation")
    rows = size or micro * (steps or fields["gradient_accumulation_steps"])
    even = [each for each in range(least, rows // 4 + 1) if rows % each == 0]
    if even and even[0] <= 2 * least:
        return {"num_generations": even[0]}
    times = -(-least // now)
    if size:
        return {"num_generations": times * now, "generation_batch_size": times * size}
    name = "steps_per_generation" if steps else "gradient_accumulation_steps"
    return {"num_generations": times * now, name: times * fields[name]}


def more_rows(config: Any, times: int) -> dict[str, int]:
    """The fields that make a step of `times` as many rows, and a rollout as many steps as before."""
    fields = vars(config)
    out = {"gradient_accumulation_steps": times * fields["gradient_accumulation_steps"]}
    for name in ("steps_per_generation", "generation_batch_size"):
        if fields.get(name):
            out[name] = times * fields[name]
    return out


# ---------------------------------------------------------------- lengths


def length_for(limit: int, cut: float, most: int | None) -> int:
    """The length at which about one completion in twenty would still be cut short, where a share `cut` is at `limit`
    and lengths fall off evenly; from 1.5 to four times as long, and `most` at most."""
    share = min(max(cut, CUT), 0.99)
    new = 8 * math.ceil(limit * min(max(math.log(CUT) / math.log(share), 1.5), 4.0) / 8)
    return new if most is None else min(new, most)
