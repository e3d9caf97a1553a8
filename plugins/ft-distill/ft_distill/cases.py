"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

from typing import Any

from ft_distill.rules import NAMES, RULES
from ft_host.testing import Told, evals, in_order, rollout_cases, steps

STILL: dict[str, Any] = {
    "distillation__divergence": lambda step: 0.6 + 0.01 * (step % 2),
    "distillation__teacher_agreement": 0.5,
}

FAULTY = {
    "DIS002": Told(facts={"plan/total_steps": 300}, lines=steps(90, **STILL)),
    "DIS003": Told(config={"loss_top_k": 8}, lines=steps(30, distillation__teacher_top_k_mass=0.7)),
    "DIS004": Told(
        lines=steps(
            60, completions__mean_length=lambda step: 60.0 if step < 20 else 4.0, completions__clipped_ratio=0.02
        )
    ),
    "DIS005": Told(facts={"model/vocab_size": 151_936}, lines=steps(20, distillation__teacher_entropy=11.0)),
}

HEALTHY = Told(
    facts={"plan/total_steps": 200, "model/vocab_size": 151_936},
    lines=steps(
        200,
        distillation__teacher_entropy=lambda step: 6.0 / (1 + step / 10),
        distillation__divergence=lambda step: 0.1 + 0.5 / (1 + step / 20),
        distillation__teacher_agreement=lambda step: 0.9 - 0.4 / (1 + step / 20),
        distillation__teacher_top_k_mass=0.97,
        completions__mean_length=lambda step: 60.0 - 0.1 * step,
        completions__clipped_ratio=0.05,
        entropy=lambda step: 1.5 - 0.005 * step,
    ),
)


def earned(rewards: dict[int, float]) -> Told:
    """By held-out completions, at these steps."""
    return Told(
        lines=in_order(steps(100, distillation__divergence=0.5), evals(rewards, reward=lambda step: rewards[step]))
    )


SHARED = rollout_cases(NAMES)
CASES = {code: (told, HEALTHY) for code, told in FAULTY.items()}
CASES |= {rule.code: SHARED[rule.code] for rule in RULES if rule.code in SHARED}
CASES["DIS117"] = (
    earned({25: 0.6, 50: 0.4, 75: 0.28, 100: 0.25}),
    earned({25: 0.5, 50: 0.4, 75: 0.6, 100: 0.55}),  # up and down
)
