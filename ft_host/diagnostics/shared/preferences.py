"""Rules that methods share which learn from what is better and worse, beside a reference. Imports no torch.

    RULES = preference_rules("DPO", ...)

Rewards are beta times log-ratios, so that they are 0 at first, whatever the loss.
"""

from __future__ import annotations

import math
import statistics

from ft_host.diagnostics.remedies import lower_rate, raise_rate, restore
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared.helpers import doubt
from ft_host.diagnostics.sizes import strong_updates
from ft_host.diagnostics.spread import risen, scatter
from ft_host.diagnostics.view import View, percent, rounded, short, went

CHOSEN, REJECTED, MARGINS = "rewards/chosen", "rewards/rejected", "rewards/margins"
LOGPS = "start/logps/chosen"
COIN_TOSSES = ("DATA008", "DATA021", "DATA022")  # rows without a preference, with the wrong one, or with both
REFERENCE = ("PRB001",)  # rewards that aren't measured from where the policy began say little
USUAL_UPDATE = 1e-3  # of pretrained weights
UPDATES = ("OPT003", "OPT004", "OPT006", "OPT007")  # too large or too small


def fall(view: View, count: int = 10) -> float:
    """How much less likely chosen completions have become, in nats."""
    return -view.mean(CHOSEN, count) / view.config.beta


def displaced(view: View) -> bool:
    """The likelihood of chosen completions has fallen by most of what it was in the first place. A dip while margins
    are made is usual, and passes."""
    return fall(view) > max(2.0, 0.8 * abs(view[LOGPS])) and view.mean(MARGINS, 10) > 0


def displaced_message(view: View) -> str:
    told, rewards = "", view.recent("eval_reward")
    if len(rewards) > 1 and rewards[-1] < rewards[0]:
        told = f" The reward of held-out completions {went(rewards[0], rewards[-1])}."
    return (
        f"Chosen completions have lost {short(fall(view))} nats against the reference (they began at"
        f" {short(view[LOGPS])}), while the mean margin is {short(view.mean(MARGINS, 10))}: what gains is something"
        f" else than what was chosen.{told}"
    )


def displaced_remedies(view: View, imitation: str | None) -> list[Remedy]:
    config, out = vars(view.config), []
    kinds = config.get("loss_type")
    if imitation is not None and isinstance(kinds, list) and imitation not in kinds:
        weights = config["loss_weights"] or [1.0] * len(kinds)
        out.append(
            Remedy(
                why=(
                    f"Add {imitation} to loss_type, with a weight of 1: chosen completions are then to become likelier,"
                    " too"
                ),
                patch={"loss_type": [*kinds, imitation], "loss_weights": [*weights, 1.0]},
                again=True,
            )
        )
    beta = config["beta"]
    new = rounded(3 * beta)
    out.append(Remedy(why=f"Raise beta from {short(beta)} to {short(new)}", patch={"beta": new}, again=True))
    slower, apart = lower_rate(view, 3), Remedy(why="Leave out pairs that are nearly the same")
    # Large updates, at any time, take all completions with them
    return [slower, *out, apart] if view.count("update_ratio") and strong_updates(view) else [*out, slower, apart]


def rows_of(view: View) -> int:
    """Rows of an optimizer step, over micro-batches and processes."""
    config = view.config
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.num_processes


def errors(view: View, count: int) -> float:
    """The mean of the last margins, in its standard errors; infinite where they don't vary. NaN below 10, and at 0."""
    values = view.recent(MARGINS, count)
    if len(values) < 10:
        return math.nan
    average, spread = statistics.fmean(values), statistics.stdev(values)
    if not spread:
        return math.copysign(math.inf, average) if average else math.nan
    return average / spread * math.sqrt(len(values))


def after_warm_up(view: View, name: str) -> list[float]:
    """Return the values of a metric after the warm-up."""
    series = view.series.get(name)
    if series is None:
        return []
    return [series.values[index] for index, step in enumerate(series.steps) if step > view.warmup_steps]


def by_chance(right: list[float], pairs: int, least: float = 0.45) -> bool:
    """Whether half of the pairs are in the right order, and no more than 60 % beyond doubt: two standard errors of as
    many pairs, which is much where a step has few. Not where the share grows. `least`: below it, it is something else
    than chance."""
    if not right:
        return False
    share, half = statistics.fmean(right), len(right) // 2
    grows = half >= 10 and risen(right[:half], right[half:], 2.5)
    return least <= share <= 0.55 and share + 1 / math.sqrt(pairs) < 0.6 and not grows


def far_from_0(view: View, count: int) -> str:
    doubt = abs(errors(view, count))
    return f", {short(doubt)} standard errors from 0" if math.isfinite(doubt) else ""


def no_preference(view: View) -> bool | None:
    """After a third of the steps after the warm-up, and 30 of them: at this pace margins stay next to nothing to its
    end, or within their noise."""
    if not view.turn(MARGINS):
        return None
    margins = after_warm_up(view, MARGINS)
    if len(margins) < 30 or len(margins) < ((view.total_steps or 0) - view.warmup_steps) / 3:
        return None
    if view.count(CHOSEN) and abs(fall(view, 20)) > max(2.0, 0.8 * abs(view.get(LOGPS, 0.0))):
        return False  # the policy has gone elsewhere, which is another trouble
    size, noise = len(margins), abs(errors(view, min(40, len(margins)))) < 2
    rise, error = view.slope(MARGINS, size), doubt(view, MARGINS, size)
    if rise > 3 * error:
        return False
    accuracies = after_warm_up(view, "rewards/accuracies")[-50:]
    if by_chance(accuracies, len(accuracies) * rows_of(view)):
        return noise
    at_best = (rise + 2 * error) / (view.progress or 1.0)
    if not accuracies and noise and rows_of(view) >= 8 and at_best < scatter(margins):
        return True
    return abs(view.mean(MARGINS, 20)) < 0.02 and at_best < 0.05


def no_preference_message(view: View) -> str:
    why = "which one is better may be a coin toss in these rows"
    if is_slow(view):
        why = "either updates are too small, or which one is better is a coin toss in these rows"
    accuracy = view.mean("rewards/accuracies", 50)
    share = "" if math.isnan(accuracy) else f", and {percent(accuracy)} of the pairs are in the right order"
    return (
        f"After {view.step} steps the mean margin is {short(view.mean(MARGINS, 40))}{far_from_0(view, 40)}{share}: no"
        f" preference has been learnt; {why}."
    )


def is_slow(view: View) -> bool:
    """Where margins have moved, though to no side, or updates are of a usual size, they are not what is too small."""
    moved = max(map(abs, view.recent(MARGINS, 20)), default=0.0) > 0.02
    return not moved and max(view.recent("update_ratio"), default=0.0) < USUAL_UPDATE


def no_preference_remedies(view: View) -> list[Remedy]:
    look = Remedy(why="Look at some pairs, whether the chosen one is the better one")
    return [raise_rate(view, 10), look] if is_slow(view) else [look]


def wrong_way(view: View) -> bool | None:
    """In training itself: rejected completions gain on chosen ones, by more than noise does."""
    found = errors(view, 20)
    if math.isnan(found):
        return None
    accuracies = view.recent("rewards/accuracies", 20)
    return view.mean(MARGINS, 20) < -0.05 and found < -4 and (not accuracies or statistics.fmean(accuracies) < 0.4)


def preference_rules(
    letters: str, *, displacement: int, signal: int, wrong: int, imitation: str | None = None
) -> list[Rule]:
    """The numbers are those of the codes. `imitation`: the loss_type that makes chosen completions likelier, where
    loss_type is a list and has one."""
    return [
        Rule(
            code=f"{letters}{displacement:03d}",
            family="preferences-01",
            follows_from=(*REFERENCE, *UPDATES, "DATA009"),  # bad labels that outweigh good ones
            mutes=("OPT014",),
            title="Chosen completions become less likely",
            stage="train",
            symptom="forgetting",
            level="policy",
            needs=(LOGPS, CHOSEN, MARGINS),
            test=displaced,
            window=30,
            least=10,
            share=0.5,
            message=displaced_message,
            remedies=lambda view: displaced_remedies(view, imitation),
            when=(
                "In half of the last 30 steps, chosen completions are less likely than under the reference by 80 % of"
                " the log-prob that they began with (2 nats at least), while margins are above 0."
            ),
            why=(
                "A margin also grows where both completions lose, the rejected one more: what gains is something else,"
                " and may be worse than either."
            ),
            remedy="Add an SFT term, raise beta, lower learning_rate, leave out pairs that are nearly the same.",
            source="2410.08847 (likelihood displacement); RPO 2404.19733",
        ),
        Rule(
            code=f"{letters}{signal:03d}",
            family="preferences-02",
            follows_from=(*REFERENCE, *UPDATES, *COIN_TOSSES),
            title="No preference is learnt",
            stage="train",
            symptom="no_learning",
            level="results",
            mutes=("OPT005", "OPT007", "OPT009", "OPT010"),
            later=("standstill", is_slow),
            needs=(MARGINS,),
            test=no_preference,
            least=5,
            share=0.6,
            message=no_preference_message,
            remedies=no_preference_remedies,
            when=(
                "After a third of the steps after the warm-up (30 at least), 45 to 55 % of pairs are in the right"
                " order (no more than 60 % with two standard errors of as many pairs), and the mean of 40 margins is"
                " within two standard errors of 0. Where there are no pairs, that alone, if margins stay within their"
                " noise to the end at this pace. Or margins are below 0.02 and won't reach 0.05 by the end. Not where"
                " margins rise beyond doubt."
            ),
            why="The learning rate is too low, or the labels are noise.",
            remedy="Raise learning_rate, look at the pairs.",
            source="own judgement",
        ),
        Rule(
            code=f"{letters}{wrong:03d}",
            family="preferences-03",
            follows_from=(*REFERENCE, "OPT007"),
            title="Training makes rejected completions likelier",
            stage="train",
            symptom="divergence",
            level="policy",
            needs=(MARGINS,),
            test=wrong_way,
            window=30,
            least=5,
            mutes=(f"{letters}{signal:03d}", "OPT005", "OPT014"),
            message=lambda view: (
                f"The mean margin is {short(view.mean(MARGINS, 20))} on what is trained on{far_from_0(view, 20)}:"
                " rejected completions gain on chosen ones, against the loss."
            ),
            remedies=lambda view: [lower_rate(view, 10), restore(view)],
            when=(
                "The mean of 20 margins is below -0.05 and four standard errors below 0, and fewer than 40 % of pairs"
                " in the right order, in 30 % of the last 30 steps."
            ),
            why=(
                "No data can do this, swapped or not: the loss is made smaller by margins alone. The learning rate is"
                " too high."
            ),
            remedy="Lower learning_rate.",
            source="own judgement",
        ),
    ]
