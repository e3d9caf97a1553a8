"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

from ft_host.testing import Told, evals, in_order, rollout_cases, steps
from ft_sdft.rules import NAMES, RULES

FAULTY = {
    "SDFT001": Told(lines=steps(30, self_distillation__empty_context_fraction=0.4)),
    "SDFT002": Told(lines=steps(10, self_distillation__teacher_logp_difference=0.002)),
    "SDFT003": Told(
        config={"teacher_model_kind": "live"},
        lines=steps(120, self_distillation__teacher_logp_difference=lambda step: 0.3 if step < 30 else 0.05 * step),
    ),
    "SDFT004": Told(
        config={"num_loss_tokens_to_skip": 40}, lines=steps(30, self_distillation__without_loss_fraction=0.6)
    ),
}

HEALTHY = Told(
    lines=steps(
        200,
        self_distillation__empty_context_fraction=0.0,
        self_distillation__teacher_logp_difference=lambda step: 0.4 / (1 + step / 20),  # at last they agree
        self_distillation__without_loss_fraction=0.02,
        completions__clipped_ratio=0.05,
        completions__mean_length=40.0,
        entropy=lambda step: 1.5 - 0.003 * step,
    )
)


def earned(rewards: dict[int, float]) -> Told:
    """By held-out completions, at these steps."""
    return Told(
        lines=in_order(
            steps(100, self_distillation__teacher_logp_difference=0.1),
            evals(rewards, reward=lambda step: rewards[step]),
        )
    )


SHARED = rollout_cases(NAMES)
CASES = {code: (told, HEALTHY) for code, told in FAULTY.items()}
CASES |= {rule.code: SHARED[rule.code] for rule in RULES if rule.code in SHARED}
CASES["SDFT117"] = (
    earned({25: 0.6, 50: 0.4, 75: 0.28, 100: 0.25}),
    earned({25: 0.5, 50: 0.4, 75: 0.6, 100: 0.55}),  # up and down
)
