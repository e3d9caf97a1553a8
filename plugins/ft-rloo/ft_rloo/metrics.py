"""Metrics of the completions of a micro-batch, as sums: under the names of TRL's RLOOTrainer."""

from __future__ import annotations

import torch

from ft_host.api import Batch, Metric, maximum, mean, minimum, sampling_metrics, widened
from ft_rloo.config import RLOOConfig


def metrics(
    ratios: torch.Tensor, advantages: torch.Tensor, made: dict, entropy: torch.Tensor, batch: Batch, config: RLOOConfig
) -> dict[str, Metric]:
    """Means over tokens, and clip ratios over completions with targets; (R,) `advantages` of others are 0."""
    tokens, trained = batch.counts["tokens"], batch.counts["trained"]
    found = {"entropy": mean(entropy.sum(), tokens)}
    if config.beta:
        found["kl"] = mean(batch.columns["kl"].sum(), tokens)
    if not trained:
        return found
    found |= sampling_metrics(made["apart"], tokens, made["furthest"])
    least, most = config.clip_range
    low = widened((ratios < least) & (advantages < 0))
    high = widened((ratios > most) & (advantages > 0))
    for name, values in (("low", low), ("high", high), ("region", low + high)):
        found[f"clip_ratio/{name}_mean"] = mean(values.sum(), trained)
    found["clip_ratio/low_min"] = minimum(low.masked_fill(batch.columns["trained"] == 0, 1.0).min())
    found["clip_ratio/high_max"] = maximum(high.max())
    return found
