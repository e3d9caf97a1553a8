"""What rules about rollouts ask of a run: has its reward risen, is the task solved, what would help. Imports no
torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ft_host.diagnostics.spread import risen
from ft_host.diagnostics.view import View

LEARNT = 0.5  # the share of what there was to gain from which on a change counts as the task being learnt
HELD_OUT_FALLS = "OPT014"  # the host's rule of a held-out reward that falls, whatever the cause
KNOWN = 0.75  # the share of what there is to earn from which on a model knows the task
SOLVED = 0.95  # of the most that a completion can earn, as a mean


# What breaks a policy: steps that go too far, and completions that another model sampled.
BREAKS = ("OPT007", "ASY001", "ASY007", "ENG004", "PRB003")
UNREWARDED = ("DATA010", "REW001")  # why all completions may earn the same
# A reward that has to be mended before anything else can be: what a policy does under it says little.
BROKEN_REWARD = (*UNREWARDED, "DATA033", "DATA039", "REW004")
# What a broken policy shows, from cause to consequence: it is clipped, leaves the reference, loses its entropy,
# doesn't end, says one thing, ends at once, earns less, and earns nothing.
RUIN = (6, 7, 5, 4, 8, 12, 10, 15, 1)


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a method calls its metrics, and what its codes begin with: `letters` and, after them, `first` + number."""

    letters: str
    first: int = 0
    reward: str = "reward"
    entropy: str = "entropy"
    kl: str = "kl"
    kl_of_completions: bool = False  # the sum over the tokens of a completion, not the mean of a token
    clip: str | None = "clip_ratio/region_mean"
    clip_of_completions: bool = False  # the share of completions whose ratio is clipped, not of tokens
    passes: str = "num_iterations"  # the field of passes over a rollout
    grouped: bool = True  # completions of a prompt are compared with each other
    by_length: tuple[str, ...] = ()  # loss types that divide by the length of a completion, and so favour one
    by_no_length: str | None = None  # the loss type that doesn't
    capped: tuple[str, ...] = ()  # loss types whose epsilon_high caps a weight, and clips nothing

    def code(self, number: int) -> str:
        return f"{self.letters}{self.first + number:03d}"


def ruin(names: Names, number: int) -> tuple[str, ...]:
    """The codes of what follows from the rule of this number in a policy that breaks."""
    later = RUIN[RUIN.index(number) + 1 :]
    return (*(names.code(each) for each in later), HELD_OUT_FALLS)


def broken_by(names: Names, number: int) -> tuple[str, ...]:
    """The codes of what the rule of this number follows from in a policy that breaks."""
    return (*BREAKS, *(names.code(each) for each in RUIN[: RUIN.index(number)]))


def rounds(view: View) -> str:
    """ "50 steps", or rollouts where a step isn't one."""
    return view.often.rpartition("last ")[2]


# ---------------------------------------------------------------- the reward


def span(view: View) -> tuple[float, float] | None:
    """The least and the most that any completion has earned. None where that isn't known, or is the same."""
    least, most = view.series.get("completions/reward_min"), view.series.get("completions/reward_max")
    if least is None or most is None:
        return None
    low, high = least.least, most.most
    return (low, high) if high - low > 1e-8 * max(1.0, abs(high)) else None


def level(view: View, names: Names, count: int = 10) -> float | None:
    """The mean reward of late, from 0, the least that was seen, to 1, the most."""
    found = span(view)
    return None if found is None else (view.mean(names.reward, count) - found[0]) / (found[1] - found[0])


def gained(view: View, names: Names) -> float:
    """How much of what there was to gain at the beginning has been gained: 1 is all of it. Where the most that can be
    earned isn't known, as a share of what was earned then."""
    begun, now = view.first(names.reward), view.mean(names.reward, 10)
    found = span(view)
    room = abs(begun) if found is None else found[1] - begun
    return (now - begun) / room if room > 0 and not math.isnan(now) else 0.0


def lost(view: View, names: Names) -> bool:
    """Whether completions earned something at first, and a good part of it is gone."""
    found = span(view)
    if found is None:
        return False
    first = max(view.first(names.reward, 3), start(view, names.reward) or -math.inf)  # one step may ruin a policy
    begun, now = first - found[0], view.mean(names.reward, 10) - found[0]
    return begun > 0.05 * (found[1] - found[0]) and now < 0.7 * begun


def doubt(view: View, name: str, count: int) -> float:
    """The standard error of how much the line through the last `count` values rises. NaN below 5."""
    values = len(view.recent(name, count))
    return view.noise(name, count) * math.sqrt(12 / values) if values else math.nan


def rising(view: View, name: str, count: int = 50) -> bool:
    """Whether it goes up by more than noise does."""
    return len(view.recent(name, count)) >= 10 and view.slope(name, count) > 3 * doubt(view, name, count)


def falling(view: View, name: str, count: int = 50) -> bool:
    return len(view.recent(name, count)) >= 10 and view.slope(name, count) < -3 * doubt(view, name, count)


def learns(view: View, names: Names) -> bool:
    """Whether the run does what it is for: the reward goes up, or has, or the task is solved."""
    reached = level(view, names)
    solved = reached is not None and reached >= SOLVED and gained(view, names) > 0
    return solved or gained(view, names) >= LEARNT or rising(view, names.reward)


def knows(view: View, names: Names) -> bool:
    """Whether most of what there is to earn is earned, at first and of late: little is left to learn."""
    found = span(view)
    if found is None:
        return False
    first = (view.first(names.reward) - found[0]) / (found[1] - found[0])
    return min(first, level(view, names) or 0.0) >= KNOWN


def tried(view: View, kind: str) -> list[float]:
    """A fact of each reward that was tried before training (`check_rewards`): its `spread`, or the `most` it gave."""
    return [
        value for name, value in view.facts.items() if name.startswith("data/reward/") and name.endswith(f"/{kind}")
    ]


def one_for_all(view: View) -> bool:
    """Whether each reward gave the same to right answers and to rubbish that were tried before training."""
    apart = tried(view, "spread")
    return len(apart) == len(view.config.reward) and not any(apart)


def at_best(view: View, names: Names) -> bool:
    """Whether completions have earned what right answers did that were tried before training (`check_rewards`), from
    the start and of late: there is nothing to learn. False where that isn't known of each reward."""
    most, apart = tried(view, "most"), tried(view, "spread")
    if not most or len(most) != len(view.config.reward) or not all(apart):
        return False
    weights = view.config.reward_weights or [1.0] * len(most)
    best = sum(weight * value for weight, value in zip(weights, most, strict=True))
    return best > 0 and min(view.first(names.reward), view.mean(names.reward, 10)) >= SOLVED * best


def has_risen(view: View, names: Names) -> bool:
    """Whether the last twenty rewards are above the first ten beyond doubt, and by a tenth of what there was to gain:
    something was learnt, whatever the reward does now."""
    series = view.series.get(names.reward)
    if series is None or len(series) < 30 or gained(view, names) < 0.1:
        return False
    return risen(view.opening(names.reward), view.recent(names.reward, 20), 3.0)


def chance(view: View) -> float:
    """What chance makes of the difference of two evaluations: their standard error, where the rows that were scored and
    the spread of their rewards are known, else 0."""
    spreads, rows = view.recent("eval_reward_std", 1000), view.facts.get("plan/scored_rows")
    return max(spreads) * math.sqrt(2 / rows) if spreads and rows else 0.0


def start(view: View, name: str) -> float | None:
    """What it was before anything was learnt: the first step's, where that is known."""
    found = view.facts.get(f"start/{name}")
    if found is None and view.count(name):
        found = view.series[name].first
    return found if found is not None and math.isfinite(found) else None


# ---------------------------------------------------------------- remedies


def held_out_rises(view: View) -> bool | None:
    """Whether the last evaluation earns more than the first, by a tenth of it at least. None where there will be some,
    and fewer than three are made."""
    evals = view.recent("eval_reward", 1000)
    if 0 < len(evals) < 3:
        return None
    return bool(evals) and evals[-1] > evals[0] + 0.1 * abs(evals[0])
