"""Weights of tokens that something else sampled than the policy that the rollout is learnt by: older weights, or
another engine. With them the update is that of the decoupled objective (arXiv 2110.00641; with asynchronous rollouts
arXiv 2505.24298)."""

from __future__ import annotations

import math
from typing import Any

import torch

from ft_host.api import Batch, Metric, effective_share, maximum, mean, minimum, sampling_metrics


# Same values as ft_grpo.losses.corrections
def sampler_weights(
    old_logps: torch.Tensor, sampling_logps: torch.Tensor, mask: torch.Tensor, config: Any
) -> torch.Tensor:
    """Return p_old / p_sampler of each token, or the product over its row: (R, T) of log-probs and mask to (R, T).

    Limited to the bounds (truncated importance sampling, fengyao.notion.site/off-policy-rl), or 0 outside of them
    (IcePop, arXiv 2510.18855). Where `mask` is False they mean nothing.
    """
    level, how = config.correction.split("_")
    logs = torch.where(mask, old_logps - sampling_logps, 0.0)
    weights = torch.exp(logs.sum(1, keepdim=True).expand_as(logs) if level == "sequence" else logs)
    smallest, largest = config.importance_sampling_clip_min or 0.0, config.importance_sampling_clip_max or math.inf
    if how == "truncate":
        return weights.clamp(smallest, largest)
    return weights.masked_fill((weights < smallest) | (weights > largest), 0.0)


def metrics(batch: Batch) -> dict[str, Metric]:
    """How far the sampler was from p_old, and the weights, over the tokens; with the names of TRL's GRPOTrainer."""
    columns, count = batch.columns, batch.counts["tokens"]
    found = sampling_metrics((columns["old_logps"] - columns["sampling_logps"]).abs(), count)
    weights = columns.get("weights")
    if weights is None or not len(weights):
        return found
    return found | {
        "sampling/importance_sampling_ratio/min": minimum(weights.min()),
        "sampling/importance_sampling_ratio/mean": mean(weights.sum(), count),
        "sampling/importance_sampling_ratio/max": maximum(weights.max()),
        "sampling/effective_sample_size": effective_share(weights.sum(), weights.square().sum(), count),
    }
