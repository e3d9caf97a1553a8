"""The rules of DPO, each on a run that raises it and on one that only looks like it. The numbers are those of runs of
examples/arithmetic: 80 steps of 32 pairs, learning rate 3e-4, a model that was tuned on few sums."""

from __future__ import annotations

from typing import Any

from ft_host.testing import Told, in_order, steps

START: dict[str, Any] = {"logps__chosen": -3.97, "logps__rejected": -23.1}

LEARNS: dict[str, Any] = {
    "loss": lambda step: 0.69 / (1 + 0.02 * step),
    "rewards__chosen": lambda step: -0.23 if step < 25 else 0.08,  # a dip at first, as is usual
    "rewards__accuracies": lambda step: min(0.5 + 0.02 * step, 0.9) if step > 2 else 0.0,
    "rewards__margins": lambda step: 0.015 * step,
    **START,
}

SWAPPED: dict[str, Any] = START | {
    "logps__chosen": -23.1,
    "logps__rejected": -3.97,
    "rewards__accuracies": lambda step: min(0.5 + 0.03 * step, 1.0),
    "rewards__margins": lambda step: min(0.16 * step, 4.0),
    "rewards__chosen": lambda step: max(-0.25 * step, -10.0),
}


def told(lines: list, more: list | None = None, **config) -> Told:
    return Told(config=config, facts={"plan/total_steps": 80}, lines=in_order(lines, more or []))


HEALTHY = told(steps(80, **LEARNS))

CASES = {
    "DPO001": (
        told(steps(80, **LEARNS | {"rewards__chosen": lambda step: max(-0.05 * step, -0.85)}), loss_type="sigmoid"),
        HEALTHY,
    ),
    "DPO002": (told(steps(80, **LEARNS | {"rewards__accuracies": lambda step: min(0.3 * step, 1.0)})), HEALTHY),
    "DPO003": (
        told(
            steps(
                80,
                **LEARNS
                | {
                    "rewards__accuracies": lambda step: 0.5 + 0.04 * (step % 3 - 1),
                    "rewards__margins": lambda step: 0.004 + 0.02 * (step % 3 - 1),
                },
            )
        ),
        HEALTHY,
    ),
    "DPO004": (told(steps(80, **SWAPPED)), told(steps(80, **SWAPPED | START | {"rewards__chosen": -0.2}))),
    "DPO005": (told(steps(80, **LEARNS | {"rewards__margins": lambda step: 0.4 * step})), HEALTHY),
    "DPO007": (
        told(steps(80, **LEARNS | {"rewards__margins": -0.9, "rewards__accuracies": 0.13})),
        told(
            steps(80, **LEARNS | {"rewards__margins": lambda step: 1e-4 if step < 4 else 0.2})
        ),  # still equal at first
    ),
}
