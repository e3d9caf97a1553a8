"""Advantages: the rewards of a prompt's completions relative to each other. Pure functions of tensors."""

from __future__ import annotations

import torch

from ft_grpo.config import GRPOConfig
from ft_grpo.losses import row_sums


def moments(values: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and unbiased standard deviation of the (n,) values of each one's group, (n,) each, without nan.

    nan where a group has no values, or fewer than two.
    """
    valid, count = ~values.isnan(), int(groups.max()) + 1 if len(groups) else 0
    sizes = row_sums(valid.double(), groups, count)
    means = row_sums(values.nan_to_num(0.0), groups, count) / sizes
    squares = row_sums((values - means[groups]).square().nan_to_num(0.0), groups, count)
    spread = torch.where(sizes > 1, squares / (sizes - 1), torch.nan).sqrt()
    return means[groups], spread[groups]


# Same values as ft_sdpo.losses.advantages
def advantages(rewards: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, config: GRPOConfig) -> torch.Tensor:
    """Return (n,) advantages from (n, K) rewards of K functions, nan where there is none, (K,) weights, and (n,)
    groups.

    Groups are long, numbered from 0. The completions are those of all ranks.
    """
    every = torch.zeros_like(groups)  # all in one group
    unknown = rewards.isnan().all(1)

    def added(values: torch.Tensor) -> torch.Tensor:
        return (values * weights).nansum(1).masked_fill(unknown, torch.nan)

    if config.multi_objective_aggregation == "normalize_then_sum":
        columns = [moments(column, groups) for column in rewards.unbind(1)]
        summed = added(
            torch.stack(
                [
                    (column - average) / (spread + 1e-4)
                    for column, (average, spread) in zip(rewards.unbind(1), columns, strict=True)
                ],
                1,
            )
        )
        average, spread = moments(summed, every)
        return ((summed - average) / (spread + 1e-4)).nan_to_num(0.0)
    summed = added(rewards)
    average, spread = moments(summed, groups)
    differences = summed - average
    if config.scale_rewards != "none":
        differences = differences / ((spread if config.scale_rewards == "group" else moments(summed, every)[1]) + 1e-4)
    return differences.nan_to_num(0.0)
