"""The weight of the entropy bonus from step to step (`use_adaptive_entropy`)."""

from __future__ import annotations

from typing import Any

from ft_grpo.config import GRPOConfig


def controlled(state: dict | None, step: int, entropy: float, config: GRPOConfig) -> dict[str, Any]:
    """What `use_adaptive_entropy` keeps of a step: `applied`, which the loss uses, is from the step before; `next` and
    `entropy` are for the step after. A step that is made again, after a stop, begins with what it began with."""
    coef, last = config.entropy_coef, None
    if state is not None:
        again = state["step"] == step
        coef, last = (state["coef"], state["last"]) if again else (state["next"], state["entropy"])
    low = entropy <= config.entropy_target
    after = coef + config.entropy_coef_delta if low else coef - config.entropy_coef_delta
    return {
        "step": step,
        "coef": coef,
        "last": last,
        "applied": coef if last is not None and last <= config.entropy_target else 0.0,
        "next": min(max(after, config.entropy_coef_min), config.entropy_coef_max),
        "entropy": entropy,
    }
