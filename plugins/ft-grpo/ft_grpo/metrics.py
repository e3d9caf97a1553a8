"""Metrics of the tokens of a micro-batch, as sums, with the names of TRL's GRPOTrainer."""

from __future__ import annotations

from dataclasses import replace

import torch

from ft_grpo.config import CLIPPED, GRPOConfig
from ft_grpo.losses import Tokens, gamma_weights, kl, row_means
from ft_host.api import Batch, Metric, effective_share, maximum, mean, minimum, sampling_metrics


def smallest(values: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the minimum of (R,) values of rows, without rows that have no tokens."""
    return values.masked_fill(sizes == 0, torch.inf).min()


def metrics(tokens: Tokens, entropy: torch.Tensor, batch: Batch, config: GRPOConfig) -> dict[str, Metric]:
    """Return means over tokens; over completions for quantities with one value per completion."""
    counts, sizes = batch.counts, tokens.sizes
    logps, q = tokens.logps.detach(), tokens.ratios.detach()
    by_completion = config.importance_sampling_level == "sequence"

    def average(values: torch.Tensor, of_rows: bool) -> Metric:
        if of_rows:
            return mean(row_means(values, tokens.rows, sizes).sum(), counts["trained"])
        return mean(values.sum(), counts["tokens"])

    out = {"entropy": mean(entropy.sum(), counts["tokens"])}
    if not counts["trained"]:
        return out
    if config.beta:
        still = replace(tokens, logps=logps, ratios=q)
        out["kl"] = mean(kl(still, batch.columns["ref_logps"], config).sum(), counts["tokens"])
    if config.loss_type in CLIPPED:
        low = ((q < 1 - config.epsilon) & (tokens.advantages < 0)).float()
        high = ((q > config.clip_high) & (tokens.advantages > 0)).float()
        for name, values in (("low", low), ("high", high), ("region", low + high)):
            out[f"clip_ratio/{name}_mean"] = average(values, by_completion)
        out["clip_ratio/low_min"] = minimum(smallest(row_means(low, tokens.rows, sizes), sizes))
        out["clip_ratio/high_max"] = maximum(row_means(high, tokens.rows, sizes).max())  # rows without tokens have 0
    elif config.loss_type == "cispo":
        above = ((q > config.clip_high) & (tokens.advantages > 0)).float()
        out["cispo_clip_ratio"] = average(above, by_completion)
    elif config.loss_type == "vespo":
        out["vespo/phi_seq_mean"] = average(gamma_weights(tokens, config)[tokens.rows], True)
    apart = (tokens.old_logps - batch.columns["sampling_logps"]).abs()
    out |= sampling_metrics(apart, counts["tokens"])
    if tokens.corrections is not None:
        weights, count, least = tokens.corrections, counts["tokens"], tokens.corrections.min()
        if config.correction.startswith("sequence"):
            weights, count = row_means(weights, tokens.rows, sizes), counts["trained"]
            least = smallest(weights, sizes)
        out["sampling/importance_sampling_ratio/min"] = minimum(least)
        out["sampling/importance_sampling_ratio/mean"] = mean(weights.sum(), count)
        out["sampling/importance_sampling_ratio/max"] = maximum(weights.max())
        out["sampling/effective_sample_size"] = effective_share(weights.sum(), weights.square().sum(), count)
    return out
