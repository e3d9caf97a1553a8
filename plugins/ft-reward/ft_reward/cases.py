"""The rules of reward modelling, each on a run that raises it and on one that only looks like it. The numbers are those
of runs of examples/arithmetic: 80 steps of 32 pairs."""

from __future__ import annotations

from typing import Any

from ft_host.testing import Told, evals, in_order, steps

LEARNS: dict[str, Any] = {
    "loss": 0.5,
    "accuracy": lambda step: min(0.5 + 0.02 * step, 0.75),
    "margin": 1.2,
    "mean_reward": 0.2,
}


def told(held_out: float = 0.73, **values) -> Told:
    lines = in_order(
        steps(80, **(LEARNS | values)), evals([0, 20, 40, 60], accuracy=lambda step: held_out if step else 0.5)
    )
    return Told(facts={"plan/total_steps": 80}, lines=lines)


HEALTHY = told(loss=lambda step: 0.674 if step == 1 else 0.45)

CASES = {
    "RM001": (told(0.68, accuracy=lambda step: min(0.5 + 0.03 * step, 1.0)), HEALTHY),
    "RM002": (told(mean_reward=lambda step: 0.3 * step), HEALTHY),
    "RM004": (told(0.5, accuracy=lambda step: 0.5 + 0.05 * (step % 3 - 1)), HEALTHY),
    "RM005": (told(loss=lambda step: 1.6 if step == 1 else 0.5), HEALTHY),
}
