"""Rules about how much completions earn, as training goes on. Imports no torch."""

from __future__ import annotations

import math
from functools import partial

from ft_host.diagnostics.remedies import (
    LOOK_AT_PAID,
    LOOK_AT_REWARD,
    larger_step,
    lower_rate,
    raise_rate,
    restore,
    set_field,
)
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import helpers
from ft_host.diagnostics.shared.helpers import Names, rounds
from ft_host.diagnostics.sizes import USUAL, strong_updates, update_at_full_rate
from ft_host.diagnostics.view import View, percent, short, went

# ---------------------------------------------------------------- 3: never rises


def never_rises(view: View, names: Names) -> bool | None:
    """Whether, at this pace, the whole run would gain less than a tenth of what there is to gain; so that a slow but
    sure start isn't taken for standing still, the pace is taken to be twice its standard error above what is seen."""
    found = helpers.span(view)
    step, total = view.step, view.total_steps
    if found is None or not view.warmed_up or not total or not view.turn(names.reward):
        return None
    if view.mean(names.reward, 10) < 0.8 * view.first(names.reward):
        return False  # that is another trouble, of updates that are too large
    count = int(view.count(names.reward) * (1 - min(view.warmup_steps / step, 1)))
    if count < 40:
        return None
    if helpers.knows(view, names):
        return False
    mean = view.mean(names.reward, count)
    room = found[1] - mean
    if room < 0.1 * (found[1] - found[0]) or helpers.falling(view, names.reward, count):
        return False
    at_best = view.slope(names.reward, count) + 2 * helpers.doubt(view, names.reward, count)
    return at_best * total / (step - view.warmup_steps) < 0.1 * room


def never_rises_remedies(view: View, names: Names) -> list[Remedy]:
    ratio = update_at_full_rate(view)
    small = ratio is None or ratio < USUAL  # larger ones do move the policy: then the reward doesn't tell it where to
    out = [raise_rate(view), LOOK_AT_REWARD] if small else [LOOK_AT_REWARD]
    if names.passes in vars(view.config):
        out.append(Remedy(why="Tune on solutions first (SFT), so that some completions are right from the start"))
    return out


# ---------------------------------------------------------------- 11, 15: falls


def best(view: View, name: str, size: int = 10) -> float:
    """The highest mean of `size` values in a row."""
    values = view.series[view.name(name)].finite()
    if len(values) < size:
        return math.nan
    now = top = sum(values[:size])
    for old, new in zip(values, values[size:], strict=False):
        now += new - old
        top = max(top, now)
    return top / size


def reward_falls(view: View, names: Names) -> bool | None:
    """Asked at every fifth rollout at most, as it looks at all of them."""
    if not view.turn(names.reward, 5) or view.count(names.reward) < 20:
        return None
    top, now = best(view, names.reward), view.mean(names.reward, 10)
    found = helpers.span(view)
    worth = top - found[0] if found else abs(top)
    evals = view.recent("eval_reward", 1000)
    if len(evals) > 1 and evals[-1] >= max(evals) > evals[0]:
        return False  # what it was worse at are harder prompts
    if view.config.train_sampling_strategy == "sequential" and len(evals) < 2:
        return None  # prompts may become harder
    return top - now > max(0.1 * worth, 6 * view.noise(names.reward) / math.sqrt(10))


def half_lost(view: View, names: Names) -> bool:
    found = helpers.span(view)
    low = found[0] if found else 0.0
    return view.mean(names.reward, 10) - low < 0.5 * (best(view, names.reward) - low)


def earned_then(view: View, names: Names) -> float | None:
    """What rollouts earned within ten steps of the best evaluation."""
    peak, rewards = view.series["eval_reward"].best(1), view.series[names.reward]
    if peak is None:
        return None
    then = [value for step, value in zip(rewards.steps, rewards.values, strict=True) if abs(step - peak[0]) <= 10]
    return sum(then) / len(then) if len(then) >= 5 else None


def held_out_falls(view: View, names: Names) -> bool | None:
    """Whether evaluations earn a tenth less than the best of them, while what is trained on earns more than then."""
    evals = view.series["eval_reward"]
    peak, then = evals.best(1), earned_then(view, names)
    if len(evals) < 3 or peak is None or peak[0] == evals.steps[-1] or then is None:
        return None
    now = view.mean(names.reward, 10)
    worse = evals.last < peak[1] - max(0.1 * abs(peak[1]), 3 * helpers.chance(view))
    return worse and now > then + max(0.02 * abs(then), 2 * view.noise(names.reward) / math.sqrt(10))


# ---------------------------------------------------------------- 13, 14, 16


ENOUGH = 64  # completions a step


def rows_of_step(view: View) -> int:
    config = view.config
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.num_processes


def noisy(view: View, names: Names) -> bool | None:
    if view.count(names.reward) < 30:
        return None
    if helpers.learns(view, names) or helpers.has_risen(view, names) or helpers.knows(view, names):
        return False
    return rows_of_step(view) < ENOUGH and abs(view.slope(names.reward)) < helpers.doubt(view, names.reward, 50)


def rules(names: Names) -> list[Rule]:
    of = partial(partial, names=names)
    reward = names.reward
    return [
        Rule(
            code=names.code(3),
            title="Reward doesn't rise",
            stage="train",
            symptom="no_learning",
            level="standstill",
            follows_from=helpers.BREAKS,
            needs=(reward, "completions/reward_max"),
            test=of(never_rises),
            window=10,
            least=3,
            share=0.6,
            message=lambda view: (
                f"The mean reward {went(view.first(reward), view.mean(reward, 10))} in {view.step} steps; at this pace"
                f" the run's {view.total_steps} steps gain less than a tenth of what there is to gain. Either updates"
                " are too small, or the reward doesn't tell better completions from worse ones."
            ),
            remedies=of(never_rises_remedies),
            when=(
                "After the warm-up and 40 rollouts or more, the line through the mean rewards, at two standard errors"
                " above what is seen, would gain less than 10 % of what is left to gain by the end of the run; not"
                " where three quarters of what there is to earn are earned from the start."
            ),
            why="A learning rate that is too low, a reward that is noise to the policy, or prompts that are too hard.",
            remedy="Raise learning_rate, try the reward by hand, tune on solutions first.",
            source="axolotl docs/training_stability; own judgement of the pace",
        ),
        Rule(
            code=names.code(11),
            title="Held-out reward falls while the reward in training rises",
            stage="train",
            symptom="overfitting",
            level="results",
            follows_from=(*helpers.BREAKS, "ENG001", "ENG003"),
            needs=("eval_reward", reward),
            mutes=(helpers.HELD_OUT_FALLS,),
            test=of(held_out_falls),
            window=4,
            least=1,
            message=lambda view: (
                f"The reward of held-out prompts {went(view.series['eval_reward'].best(1)[1], view['eval_reward'])}"
                f" since step {view.series['eval_reward'].best(1)[0]:.0f}, while that of training"
                f" {went(earned_then(view, names) or 0.0, view.mean(reward, 10))}: what is learnt doesn't carry over."
            ),
            remedies=lambda view: [
                LOOK_AT_PAID,
                restore(view),
                *([lower_rate(view)] if strong_updates(view) else []),
                *(
                    set_field(view, "beta", 0.04, ", which holds the policy near the model it began as", again=True)
                    if vars(view.config).get("beta", 1) < 0.04
                    else []
                ),
            ],
            when=(
                "An evaluation earns 10 % less than the best one (and three standard errors), and training earns more"
                " than at that time."
            ),
            why="The policy has found what the reward pays for beside the task, or has learnt the prompts by heart.",
            remedy=(
                "Mend the reward, or add one that checks; go back to the best checkpoint; raise beta. A lower "
                "learning_rate where updates are far larger than usual."
            ),
            source="Gao et al. 2210.10760; own judgement",
        ),
        Rule(
            code=names.code(13),
            title="The batch is small for this reward",
            stage="train",
            level="notes",
            follows_from=("updates", "policy"),
            needs=(reward,),
            test=of(noisy),
            severity="info",
            least=30,
            share=0.8,
            message=lambda view: (
                f"In the last {rounds(view)} the mean reward changed by {short(view.slope(reward))}, within its"
                f" standard error {short(helpers.doubt(view, reward, 50))}, with {rows_of_step(view)} completions a"
                " step."
            ),
            remedies=lambda view: larger_step(view, rows_of_step(view), ENOUGH),
            when=(
                "Fewer than 64 completions a step, and in most steps the reward's rise over the last 50 is within one "
                "standard error of 0; not where it has risen before, or is high from the start."
            ),
            why="A step's gradient is mostly chance: progress, if there is any, can't be seen, and is slow.",
            remedy="More prompts a step.",
            source="PRIME-RL: at least 64 completions",
        ),
        Rule(
            code=names.code(14),
            title="A reward function fails",
            stage="train",
            level="rewards",
            follows_from=("DATA010",),
            mutes=(names.code(1), "OPT002", "standstill", "ENG010"),
            later=("notes", lambda view: view["rewards/*/failed_share"] <= 0.5),
            needs=("rewards/*/failed_share",),
            test=lambda view: view["rewards/*/failed_share"] > 0.05,
            window=20,
            least=1,
            share=0.3,
            severe=lambda view: view["rewards/*/failed_share"] > 0.5,
            message=lambda view: (
                f"The reward {view.cause} gave no value for {percent(view['rewards/*/failed_share'])} of the"
                f" completions of step {view.step}: an error, a timeout, or something that is no number. They count for"
                " nothing."
            ),
            remedies=lambda view: [Remedy(why="Mend the function: events.jsonl has the first error of each rollout")],
            when="A reward function gives no number for more than 5 % of the completions of a rollout; 50 %: an error.",
            why="Completions that it fails on, often the odd ones, are neither rewarded nor punished.",
            remedy="Mend the function; raise reward_timeout where it is slow.",
            source="PRIME-RL run monitoring",
        ),
        Rule(
            code=names.code(15),
            title="Reward has fallen from its best",
            stage="train",
            symptom="divergence",
            level="results",
            follows_from=helpers.BREAKS,
            needs=(reward,),
            test=of(reward_falls),
            window=10,
            least=3,
            share=0.6,
            severe=of(half_lost),
            mutes=(names.code(3), *helpers.ruin(names, 15)),
            message=lambda view: (
                f"The mean reward of ten rollouts {went(best(view, reward), view.mean(reward, 10))} since the best ten:"
                " the policy has got worse."
            ),
            remedies=lambda view: [lower_rate(view, 2 if helpers.gained(view, names) > 0 else 5), restore(view)],
            when=(
                "The mean of the last 10 rollouts is below that of the best 10 in a row by more than 10 % and more than"
                " noise, at most looks (one each 5 rollouts); by half: an error. Not where the last evaluation is the"
                " best one; with train_sampling_strategy: sequential, not without evaluations."
            ),
            why="Updates that are too large have broken the policy, or it has drifted to where the reward is worse.",
            remedy="Go back to the best checkpoint with a lower learning rate.",
            source="own judgement",
        ),
    ]
