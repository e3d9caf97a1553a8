"""Runs as they come, made of dice: losses whose batches differ in many ways, of runs that learn and of runs that don't.

A healthy run is drawn from what healthy runs are like: how it falls, how batches differ, its schedule, its length, its
evaluations. A faulty one is drawn from what its fault does. `tests/test_trends.py` asks the rules about them. The same
dice give the same run.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from ft_host.testing.rules import Told

Dice = random.Random

# How batches differ: factors of mean 1. Small batches, packed rows, rows of very different kinds, weighted labels.
SPREADS: dict[str, Callable[[Dice], float]] = {
    "even": lambda dice: 1 + dice.gauss(0, 0.02),
    "usual": lambda dice: 1 + dice.gauss(0, 0.08),
    "small batches": lambda dice: max(0.1, 1 + dice.gauss(0, 0.25)),
    "single rows": lambda dice: dice.gammavariate(3, 1 / 3),
    "long tail": lambda dice: dice.lognormvariate(-0.32, 0.8),
    "weighted labels": lambda dice: (0.5 if dice.random() < 0.7 else 2.15) * (1 + dice.gauss(0, 0.03)),
    "mostly heavy labels": lambda dice: (0.3 if dice.random() < 0.4 else 1.45) * (1 + dice.gauss(0, 0.03)),
    "rare rows": lambda dice: 0.8 + 5 * (dice.random() < 0.04),
}
LENGTHS = (12, 20, 30, 40, 60, 100, 150, 300)


@dataclass
class Plan:
    """What a run is set to."""

    count: int
    warm_up: int
    schedule: str
    ratio: float  # of updates to weights, at the full rate
    config: dict

    def rate(self, step: int) -> float:
        """As a share of the full learning rate."""
        if step <= self.warm_up:
            return step / max(self.warm_up, 1)
        done = (step - self.warm_up) / max(self.count - self.warm_up, 1)
        if self.schedule == "constant":
            return 1.0
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def plan(dice: Dice, ratio: float, least: int = 12, **config) -> Plan:
    count = dice.choice([length for length in LENGTHS if length >= least])
    warm_up = dice.choice([0, 5, 10, count // 10, count // 4])
    return Plan(
        count,
        min(warm_up, count // 2),
        dice.choice(["constant", "linear", "cosine"]),
        ratio,
        {"max_steps": count, "learning_rate": 1e-3, "max_grad_norm": dice.choice([1.0, 1.0, 0.5, 0.0]), **config},
    )


def told(
    dice: Dice, set_to: Plan, level: Callable[[int], float], spread: str, evals: bool = False, facts: dict | None = None
) -> Told:
    """A run of tokens whose losses are around `level`; with `evals`, held-out rows follow it without a spread."""
    config = set_to.config | {"warmup_steps": set_to.warm_up}
    norm, wide = dice.uniform(0.3, 3.0), dice.choice([0.1, 0.3, 0.6, 1.0])
    lines = []
    for step in range(1, set_to.count + 1):
        line = {
            "kind": "train",
            "step": step,
            "epoch": step / 100,
            "loss": level(step) * SPREADS[spread](dice),
            "grad_norm": norm * dice.lognormvariate(0, wide),
            "learning_rate": config["learning_rate"] * set_to.rate(step),
            "mean_token_accuracy": 0.6,
        }
        if step % 10 == 0:
            line["update_ratio"] = set_to.ratio * set_to.rate(step) * dice.uniform(0.8, 1.2)
        lines.append(line)
        if evals and step % max(5, set_to.count // 8) == 0:
            held_out = statistics.median(level(near) for near in range(step - 2, step + 3))
            lines.append({"kind": "eval", "step": step, "eval_loss": held_out * (1 + dice.gauss(0, 0.01))})
    if evals:
        lines.insert(0, {"kind": "eval", "step": 0, "eval_loss": level(0)})
        config["eval_dataset"] = "held out"
    known = {"plan/total_steps": set_to.count, "model/vocab_size": 1000, **(facts or {})}
    return Told(config=config, facts=known, lines=lines)


# ---------------------------------------------------------------- runs in which nothing is wrong


def learns(dice: Dice) -> Told:
    """It falls, by much or by little, fast or slowly, and then stays."""
    start, left = dice.uniform(0.3, 4.0), dice.uniform(0.1, 0.9)
    set_to = plan(dice, 10 ** dice.uniform(-3.5, -2.0))
    pace = dice.uniform(3, 0.5 * set_to.count)

    def level(step: int) -> float:
        done = max(0.0, step - 0.5 * set_to.warm_up) / pace
        return start * (left + (1 - left) * math.exp(-done))

    return told(dice, set_to, level, dice.choice(list(SPREADS)), dice.random() < 0.5)


def knows(dice: Dice) -> Told:
    """The model knows the task: the loss is where it stays from the first step on."""
    level = 10 ** dice.uniform(-2, 0.5)
    set_to = plan(dice, 10 ** dice.uniform(-2.9, -2.0))
    return told(dice, set_to, lambda step: level, dice.choice(list(SPREADS)), dice.random() < 0.5)


def warms_again(dice: Dice) -> Told:
    """A trained model under a new schedule: the loss goes up by some percent at the full rate, and comes down."""
    start, bump = dice.uniform(0.5, 2.0), dice.uniform(0.02, 0.12)
    set_to = plan(dice, 10 ** dice.uniform(-3.0, -2.0), least=60)
    top = max(set_to.warm_up, 5)

    def level(step: int) -> float:
        return start * (1 + bump * (min(step / top, 1) - 1.5 * max(0.0, (step - top) / (set_to.count - top))))

    return told(dice, set_to, level, dice.choice(list(SPREADS)), dice.random() < 0.5)


def curriculum(dice: Dice) -> Told:
    """Rows in the order of the data, easy ones first: the loss rises, at once or slowly. Held-out rows get better."""
    start, harder = dice.uniform(0.3, 1.5), dice.uniform(1.2, 2.5)
    set_to = plan(dice, 10 ** dice.uniform(-3.0, -2.0), least=40, train_sampling_strategy="sequential")
    at, sharp = dice.uniform(0.3, 0.7) * set_to.count, dice.choice([1.0, 10.0, 40.0])

    def level(step: int) -> float:
        return start * (1 + (harder - 1) / (1 + math.exp(max(min((at - step) / sharp, 50), -50))))

    evals = dice.random() < 0.5
    run = told(dice, set_to, level, dice.choice(["even", "usual", "small batches", "single rows"]), evals)
    for line in run.lines:
        if line["kind"] == "eval":
            line["eval_loss"] = 2.0 - line["step"] / set_to.count
    return run


def first_of_all_solved(dice: Dice) -> Told:
    """It is learnt in a few steps; what is left is next to nothing, with a row now and then."""
    start = dice.uniform(0.5, 3.0)
    set_to = plan(dice, 10 ** dice.uniform(-3.0, -1.7), least=40)

    def level(step: int) -> float:
        return start * math.exp(-step / 4) + 0.001 + 0.04 * (step % 9 == 0)

    return told(dice, set_to, level, dice.choice(["even", "usual", "small batches"]), dice.random() < 0.5)


HEALTHY = {each.__name__: each for each in (learns, knows, warms_again, curriculum, first_of_all_solved)}

# ---------------------------------------------------------------- runs in which the rate is wrong


def diverges(dice: Dice) -> Told:
    """Far too high a rate: from the end of the warm-up on the loss goes up, and stays there."""
    start, times = dice.uniform(0.5, 3.0), dice.uniform(2.0, 5.0)
    set_to = plan(dice, 10 ** dice.uniform(-2.3, -1.5), least=60)
    at = dice.uniform(0.5, 1.0) * set_to.warm_up + 4

    def level(step: int) -> float:
        return start * (1 + (times - 1) * min(max(0.0, step - at) / 12, 1.0))

    return told(dice, set_to, level, dice.choice(["even", "usual", "small batches"]), dice.random() < 0.5)


def crawls(dice: Dice) -> Told:
    """A thousandth of the rate: nothing moves."""
    start = dice.uniform(0.5, 3.0)
    set_to = plan(dice, 10 ** dice.uniform(-6.5, -5.3), least=60)
    return told(dice, set_to, lambda step: start * (1 - 2e-5 * step), dice.choice(list(SPREADS)), dice.random() < 0.5)


def crawls_from_new(dice: Dice) -> Told:
    """The same of new weights, which begin at the loss of guessing."""
    set_to = plan(dice, 10 ** dice.uniform(-5.0, -4.2), least=60)
    start = math.log(1000)
    return told(dice, set_to, lambda step: start * (1 - 1e-4 * step), "even", dice.random() < 0.5)


FAULTY = {each.__name__: each for each in (diverges, crawls, crawls_from_new)}

# ---------------------------------------------------------------- pairs


def of_pairs(
    dice: Dice, margin: Callable[[float], float], *, rows: int, count: int, warm_up: int, ratio: float
) -> Told:
    """A run of DPO. `margin`: the mean margin of a pair, by the share of the run that is done; pairs differ by 1."""
    set_to = Plan(count, warm_up, dice.choice(["constant", "linear", "cosine"]), ratio, {})
    apart = dice.uniform(0.3, 1.0)
    lines = []
    for step in range(1, count + 1):
        mean = margin(step / count) if step > 1 else 0.0
        wide = apart * min(1.0, (step - 1) / 20)  # policy and reference begin as one
        margins = [mean + wide * dice.gauss(0, 1) for _ in range(rows)]
        chosen = sum(margins) / rows * 0.4
        line = {
            "kind": "train",
            "step": step,
            "epoch": step / 100,
            "loss": sum(math.log1p(math.exp(-each)) for each in margins) / rows,
            "grad_norm": 2 * dice.lognormvariate(0, 0.4),
            "learning_rate": 1e-5 * set_to.rate(step),
            "rewards/chosen": chosen,
            "rewards/rejected": chosen - sum(margins) / rows,
            "rewards/margins": sum(margins) / rows,
            "rewards/accuracies": sum(each > 0 for each in margins) / rows,
        }
        if step % 10 == 0:
            line["update_ratio"] = ratio * set_to.rate(step)
        lines.append(line)
    config = {
        "max_steps": count,
        "learning_rate": 1e-5,
        "warmup_steps": warm_up,
        "per_device_train_batch_size": rows,
        "beta": 0.1,
    }
    facts = {
        "plan/total_steps": count,
        "model/reference": "m",
        "start/logps/chosen": -40.0,
        "start/logps/rejected": -41.0,
    }
    return Told(config=config, facts=facts, lines=lines)


def prefers(dice: Dice, **more: float) -> Told:
    """Margins rise: at once, or late; to much, or to a little that is clear."""
    high, when = dice.uniform(0.6, 2.5), dice.uniform(0.0, 0.3)
    return of_pairs(
        dice,
        lambda done: high / (1 + math.exp(-12 * (done - when - 0.15))) - high / (1 + math.exp(12 * (when + 0.15))),
        rows=dice.choice([2, 4, 8, 16, 32]),
        count=dice.choice([60, 100, 150, 300]),
        warm_up=dice.choice([0, 10, 30]),
        ratio=10 ** dice.uniform(-3.7, -2.5),
    )


def tosses(dice: Dice) -> Told:
    """Which one is chosen is a coin toss."""
    return of_pairs(dice, lambda done: 0.0, rows=16, count=150, warm_up=10, ratio=2e-3)


# ---------------------------------------------------------------- rollouts


def of_rollouts(dice: Dice, skill: Callable[[float], float], *, ratio: float = 2e-3, evals: bool = True) -> Told:
    """A run of GRPO. `skill`: the logit of a right answer to a prompt of middling difficulty, by the share of the run
    that is done."""
    count, prompts, of_each = dice.choice([60, 100, 150]), dice.choice([4, 8, 16, 32]), dice.choice([4, 8])
    warm_up, entropy = dice.choice([0, 10]), 10 ** dice.uniform(-1.3, 0.2)
    wide = dice.uniform(0.5, 2.5)  # of prompts' difficulties
    held_out = [dice.gauss(0, wide) for _ in range(dice.choice([48, 128, 200]))]
    likely = lambda logit: 1 / (1 + math.exp(-logit))  # noqa: E731
    lines = []
    for step in range(0, count + 1):
        now = skill(step / count)
        if evals and step % max(10, count // 6) == 0:
            right = [float(dice.random() < likely(now + each)) for each in held_out]
            mean = statistics.fmean(right)
            lines.append(
                {"kind": "eval", "step": step, "eval_reward": mean, "eval_reward_std": math.sqrt(mean * (1 - mean))}
            )
        if not step:
            continue
        groups = []
        for _ in range(prompts):
            chance = likely(now + dice.gauss(0, wide))
            groups.append([float(dice.random() < chance) for _ in range(of_each)])
        rewards = [each for group in groups for each in group]
        mean = statistics.fmean(rewards)
        lines.append(
            {
                "kind": "train",
                "step": step,
                "loss": dice.gauss(0, 0.02),
                "grad_norm": 0.4 * dice.lognormvariate(0, 0.5),
                "learning_rate": 3e-4 * min(1.0, step / max(warm_up, 1)),
                "reward": mean,
                "reward_std": statistics.pstdev(rewards),
                "frac_reward_zero_std": statistics.fmean(len(set(group)) == 1 for group in groups),
                "rewards/right/mean": mean,
                "rewards/right/std": statistics.pstdev(rewards),
                "completions/reward_min": min(rewards),
                "completions/reward_max": max(rewards),
                "completions/mean_length": 30 * dice.lognormvariate(0, 0.1),
                "completions/clipped_ratio": max(0.0, 0.3 * (1 - 4 * step / count)) * dice.uniform(0.5, 1.5),
                "completions/unique_share": 0.3 + 0.4 * (1 - likely(now)),
                "completions/reward_length_correlation": dice.gauss(0, 0.2),
                "entropy": entropy * (0.1 + 0.9 * (1 - likely(now))) * dice.lognormvariate(0, 0.1),
                "kl": 0.3 * step / count * dice.uniform(0.7, 1.3),
                "clip_ratio/region_mean": 0.004 * dice.random() * (step > 1),
                "clip_ratio/high_mean": 0.002,
                "clip_ratio/low_mean": 0.002,
                "perf/rollout_time": 0.7,
                **({"update_ratio": ratio * dice.uniform(0.7, 1.2)} if step % 10 == 0 else {}),
            }
        )
    config = {
        "max_steps": count,
        "learning_rate": 3e-4,
        "warmup_steps": warm_up,
        "num_generations": of_each,
        "per_device_train_batch_size": prompts * of_each,
        "max_completion_length": 64,
    }
    return Told(config=config, facts={"plan/total_steps": count, "plan/scored_rows": len(held_out)}, lines=lines)


def earns_more(dice: Dice) -> Told:
    """The reward rises, from next to nothing or from the half of it, soon or slowly."""
    begin, gain = dice.uniform(-1.5, 0.5), dice.uniform(1.2, 3.0)
    pace = dice.uniform(1, 4)
    return of_rollouts(dice, lambda done: begin + gain * (1 - math.exp(-pace * done)), evals=dice.random() < 0.7)


def can_do_it(dice: Dice) -> Told:
    """A model that knows the task: nearly all is earned from the start."""
    begin = dice.uniform(2.5, 4.5)
    return of_rollouts(dice, lambda done: begin + done, evals=dice.random() < 0.7)


def unlearns(dice: Dice) -> Told:
    """Far too large updates: what was earned is gone after a third of the run."""
    begin = dice.uniform(0.5, 1.5)
    return of_rollouts(dice, lambda done: begin - 6 * min(3 * done, 1.0), ratio=1.5e-2)


PAIRS, ROLLOUTS = {"prefers": prefers}, {"earns_more": earns_more, "can_do_it": can_do_it}
