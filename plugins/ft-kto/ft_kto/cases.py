"""The rules of KTO, each on a run that raises it and on one that only looks like it. The numbers are those of runs of
examples/arithmetic: 80 steps of 64 rows at beta 1."""

from __future__ import annotations

from typing import Any

from ft_host.testing import Told, evals, in_order, steps

LEARNS: dict[str, Any] = {
    "loss": 0.6,
    "kl": 0.0,
    "logps__chosen": -3.4,
    "rewards__chosen": -0.6,
    "rewards__rejected": lambda step: -0.05 * step,
    "rewards__margins": lambda step: 0.05 * step,
}

BETA: dict[str, Any] = {"beta": 1.0, "per_device_train_batch_size": 64}


def told(more: list | None = None, config: dict | None = None, **values) -> Told:
    lines = in_order(steps(80, **(LEARNS | values)), more or [])
    return Told(config=BETA | (config or {}), facts={"plan/total_steps": 80}, lines=lines)


HEALTHY = told(evals([20, 40], **{"rewards/margins": 1.2}))

CASES = {
    "KTO001": (told(config={"per_device_train_batch_size": 2}), HEALTHY),
    "KTO002": (told(rewards__chosen=0.001), HEALTHY),
    "KTO004": (told(evals([20, 40], **{"rewards/margins": -1.2})), HEALTHY),
    "KTO005": (told(rewards__chosen=lambda step: -0.1 * step), HEALTHY),
    "KTO006": (told(rewards__margins=0.003, rewards__rejected=-0.61), HEALTHY),
    "KTO007": (told(rewards__margins=-0.8), HEALTHY),
}
