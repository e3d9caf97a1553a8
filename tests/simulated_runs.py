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
