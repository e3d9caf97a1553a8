"""Metrics of a micro-batch, as sums."""

from __future__ import annotations

import math
from typing import Any

import torch

from ft_host.api import Batch, Metric, mean, sampling_metrics


def distances(losses: torch.Tensor, own: torch.Tensor, counts: tuple[float, float], config: Any) -> dict[str, Metric]:
    """Return means of losses (n,): of all, and by whether the policy sampled the token, (n,).

    `counts`: of all and of the policy's.
    """
    out = {"distillation/divergence": mean(losses.sum(), counts[0])}
    if 0 < config.lmbda < 1:
        out["distillation/on_policy_loss"] = mean((losses * own).sum(), counts[1])
        out["distillation/off_policy_loss"] = mean((losses * ~own).sum(), counts[0] - counts[1])
    return out


def of_tokens(out: dict[str, torch.Tensor], batch: Batch, sampled: bool) -> dict[str, Metric]:
    """Return means over the student's tokens. `sampled`: its log-probs are at the sampling temperature."""
    metrics = {"entropy": mean(out["entropy"].sum(), batch.counts["tokens"])}
    if sampled:
        apart = (out["logps"] - batch.columns["sampling_logps"]).abs() * batch.columns["on_policy"][batch.rows]
        metrics |= sampling_metrics(apart, batch.counts["on_policy"])
    return metrics


def unsure(out: dict[str, torch.Tensor], vocabulary: int, count: float) -> dict[str, Metric]:
    """Return the mean entropy of the teacher's distribution as a share of the most that one over so many tokens has:
    1 is a teacher that knows nothing. `count`: of the tokens, or units, in the step."""
    return {"distillation/teacher_entropy_share": mean(out["teacher_entropy"].sum() / math.log(vocabulary), count)}
