"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

from ft_host.testing import Told, rollout_cases, steps
from ft_sdpo.rules import NAMES, RULES


def told(config: dict | None = None, count: int = 60, **metrics) -> Told:
    return Told(config=config or {}, lines=steps(count, **metrics))


FAULTY = {
    "SDPO001": told(
        self_distillation__reprompt_sample_fraction=0.01,
        self_distillation__success_group_fraction=0.01,
        self_distillation__feedback_available_fraction=0.0,
        completions__reward_max=0.4,
    ),
    "SDPO002": told(
        {"include_environment_feedback": True},
        self_distillation__success_group_fraction=0.0,
        self_distillation__reprompt_sample_fraction=0.8,
        self_distillation__feedback_available_fraction=0.8,
    ),
    "SDPO003": told(self_distillation__feedback_available_fraction=0.9),
    "SDPO004": told({"include_environment_feedback": True}, self_distillation__feedback_available_fraction=0.0),
    "SDPO005": told(count=10, self_distillation__teacher_logp_difference=0.001),
    "SDPO006": told({"max_reprompt_len": 100}, self_distillation__reprompt_too_long_fraction=0.5),
    "SDPO007": told(
        count=120, self_distillation__teacher_logp_difference=lambda step: 0.3 if step < 30 else 0.05 * step
    ),
}

HEALTHY = told(
    count=200,
    self_distillation__reprompt_sample_fraction=lambda step: min(0.2 + 0.004 * step, 0.95),
    self_distillation__success_group_fraction=lambda step: min(0.3 + 0.004 * step, 1.0),
    self_distillation__feedback_available_fraction=0.0,
    self_distillation__reprompt_too_long_fraction=0.0,
    self_distillation__teacher_logp_difference=lambda step: 0.5 / (1 + step / 50),
    reward=lambda step: 0.1 + 0.004 * step,
    completions__reward_min=0.0,
    completions__reward_max=1.0,
    completions__clipped_ratio=0.02,
    completions__mean_length=40.0,
    entropy=lambda step: 1.5 - 0.003 * step,
)

SHARED = rollout_cases(NAMES)
CASES = {code: (told, HEALTHY) for code, told in FAULTY.items()}
CASES |= {rule.code: SHARED[rule.code] for rule in RULES if rule.code in SHARED}
