"""The rules of PPO, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_host.testing import Told, rollout_cases, steps
from ft_ppo.rules import SHARED

FACTS = {"plan/total_steps": 120}


def told(**values) -> Told:
    """The numbers are those of runs of examples/arithmetic with 128 prompts a rollout."""
    return Told(config={"num_ppo_epochs": 4}, facts=FACTS, lines=steps(60, **values))


CASES = rollout_cases(SHARED) | {
    "PPO001": (told(policy__approxkl_avg=lambda step: 0.05 * (step % 4)), told(policy__approxkl_avg=0.0065)),
    "PPO002": (
        told(val__explained_variance=-0.6),
        told(val__explained_variance=lambda step: min(-1.6 + 0.03 * step, -0.05)),  # a value model that is learning
    ),
    "PPO003": (told(policy__clipfrac_avg=lambda step: 0.2 * (step % 4)), told(policy__clipfrac_avg=0.018)),
    "PPO004": (told(val__ratio=1.03, val__ratio_var=0.02), told(val__ratio=1.0, val__ratio_var=0.0)),
    "PPO005": (
        told(loss__value_avg=lambda step: 0.3 if step < 30 else 2.5),
        told(loss__value_avg=lambda step: 0.37 / step**0.5),
    ),
}
