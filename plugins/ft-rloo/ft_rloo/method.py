"""RLOO: sample several completions of each prompt, and raise the likelihood of those that earn more than the mean of
the others (REINFORCE with leave-one-out baselines, arXiv 2402.14740).

    r_i  = clip(sum over rewards of weight x reward) - beta KL_i          KL_i = sum_t  log p_old(t) - log p_ref(t)
    A_i  = r_i - mean of r_j over the other completions of the prompt
    loss = -1/N sum_i  min(q_i A_i, clip(q_i, 1 - epsilon, 1 + epsilon_high) A_i)     q_i = p(completion i) / p_old(...)

A completion is one action: its log-prob is the sum over its tokens, and it has one ratio. N: completions with targets
of the optimizer step, on all ranks. p_old is the policy that the rollout began with; KL is the estimate k1, of either
sign.

A reward of None counts for nothing. A completion that has no other is in no mean, and its advantage is 0, as is that of
one that has nothing to be compared with. A completion that is masked has no targets: it is in no loss, in no
denominator and has no KL, but its reward stays in the baselines of its group.

While the policy is the one that sampled (one update a rollout), q_i is 1, nothing is clipped, and each token has its
share of the loss, so that the head makes the gradient in the forward pass. The loss is then -1/N sum_i A_i, which is 0
but for round-off, as the advantages of a group add up to 0: only its gradient tells something.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ft_host.api import (
    Batch,
    LossOutput,
    ModelSpec,
    Rollout,
    annotate,
    completion_batch,
    completion_metrics,
    completion_row,
    hookimpl,
    masked_row,
    num_targets,
    policy_values,
    prompt_row,
    sum_by_row,
    widened,
)
from ft_rloo.metrics import metrics

# ---------------------------------------------------------------- maths


def leave_one_out(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return (n,) advantages: the reward minus the mean of the group's other rewards.

    From (n,) rewards, nan where there is none, and the group of each, (n,) long from 0. nan without a reward, or
    without others to compare it with.
    """
    valid, count = ~rewards.isnan(), int(groups.max()) + 1 if len(groups) else 0
    others = rewards.new_zeros(count).index_add(0, groups, valid.to(rewards.dtype))[groups] - 1
    total = rewards.new_zeros(count).index_add(0, groups, rewards.nan_to_num(0.0))[groups]
    return torch.where(others > 0, rewards - (total - rewards) / others, torch.nan)


def normalized(advantages: torch.Tensor) -> torch.Tensor:
    """Scale (n,) advantages to a mean of 0 and an unbiased standard deviation of 1 (up to 1e-4); nan values stay and
    don't count.
    """
    valid = advantages[~advantages.isnan()]
    if len(valid) < 2:
        return advantages
    return (advantages - valid.mean()) / (valid.std() + 1e-4)


# Same values as ft_sdpo.losses.clipped
def clipped_losses(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, clip_range: tuple[float, float]
) -> torch.Tensor:
    """Return PPO's clipped objective with a completion as an action: (R,) from (R,) log-probs of whole completions."""
    ratios = torch.exp(logps - old_logps)
    return -torch.minimum(ratios * advantages, ratios.clamp(*clip_range) * advantages)


def on_policy_losses(logps: torch.Tensor, advantages: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return - q A where p is p_old, as shares of the tokens: (n,) from (n,) log-probs.

    `advantages` and `sizes` are those of the tokens' completions. q is 1 + sum_t log p(t) / p_old(t), in value and in
    derivative.
    """
    return -advantages * (1 / sizes + logps - logps.detach())


# ---------------------------------------------------------------- hooks: rollouts


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    return config.reference_models()


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """The completions of each prompt, and what they earn before the KL penalty."""
    config, size = rollout.config, rollout.config.num_generations
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    earned = [clipped(total, config.reward_clip_range) for total in rewards.totals()]
    found = []
    for place, (completion, reward) in enumerate(zip(completions, earned, strict=True)):
        row = completion_row(rows[place // size], completion)
        if config.mask_truncated_completions and row["truncated"]:
            row = masked_row(row)
        found.append(row | {"reward": reward})
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size, [earned])
    return Rollout(rows=found, metrics=metrics, samples=rewards.samples(rows))


def clipped(reward: float | None, bounds: list[float] | None) -> float | None:
    return reward if reward is None or bounds is None else min(max(reward, bounds[0]), bounds[1])


def of_policy(logps: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Return for each completion, (R,) each, from (N,) log-probs: their sum, and the sampler's differences, summed and
    maximal.

    In float64, where the device has it: ratios are of sums over hundreds of tokens.
    """
    apart = (logps - batch.columns["sampling_logps"]).abs()
    furthest = apart.new_zeros(batch.num_rows).scatter_reduce(0, batch.rows, apart, "amax")
    return {
        "old_logps": sum_by_row(widened(logps), batch),
        "apart": sum_by_row(widened(apart), batch),
        "furthest": widened(furthest),
    }


def policy_says(model: Any, batch: Batch, temperature: float) -> dict[str, torch.Tensor]:
    return of_policy(model(batch, want=("logp",), temperature=temperature)["logp"], batch)


def reference_says(model: Any, batch: Batch, temperature: float) -> dict[str, torch.Tensor]:
    logps = model(batch, want=("logp",), temperature=temperature)["logp"]
    return {"ref_logps": sum_by_row(widened(logps), batch)}


def advantages(earned: list[tuple[int, float]], normalize: bool) -> list[float]:
    """Return advantages of the completions of all ranks, each given as its group and its reward, nan where there is
    none.
    """
    groups, rewards = zip(*earned, strict=True) if earned else ((), ())
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    made = leave_one_out(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor([places[group] for group in groups], dtype=torch.long)
    )
    return (normalized(made) if normalize else made).nan_to_num(0.0).tolist()


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, before its first update: log-probs of policy and reference where they are needed, and
    advantages."""
    config = run.config
    if config.beta or run.rollouts.updates > 1:
        rows = policy_values(rows, run, partial(policy_says, temperature=config.temperature))
    if config.beta:
        rows = annotate(rows, run, "reference", partial(reference_says, temperature=config.temperature))
        rows = [row | {"kl": row["old_logps"] - row["ref_logps"]} for row in rows]
    mine = [
        (row["group"], torch.nan if row["reward"] is None else row["reward"] - config.beta * row.get("kl", 0.0))
        for row in rows
    ]
    made = run.over_ranks(mine, partial(advantages, normalize=config.normalize_advantages))
    return [row | {"advantage": advantage} for row, advantage in zip(rows, made, strict=True)]


OF_ROWS = ("advantage", "kl", "old_logps", "apart", "furthest")

# ---------------------------------------------------------------- hooks: the loss


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = completion_batch(rows, targets=("sampling_logps",), numbers=OF_ROWS, dtype=torch.float64)
    batch.columns["sizes"] = torch.tensor([num_targets(row) for row in rows], dtype=torch.float64)
    batch.columns["trained"] = (batch.columns["sizes"] > 0).double()
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, on_policy = run.config, run.rollouts.updates == 1
    columns = batch.columns
    advantages = columns["advantage"] * columns["trained"]

    def shares(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
        rows = batch.rows[part]
        return on_policy_losses(values["logp"], advantages[rows], columns["sizes"][rows])

    loss_of_tokens = shares if on_policy else None  # otherwise the ratio of a completion needs all of its tokens
    out = model(batch, want=("logp", "entropy"), loss=loss_of_tokens, temperature=config.temperature)
    logps = sum_by_row(widened(out["logp"]), batch)
    made = columns if "old_logps" in columns else of_policy(out["logp"].detach(), batch)
    old_logps = logps.detach() if on_policy else made["old_logps"]
    loss = out["loss"] if on_policy else clipped_losses(logps, old_logps, advantages, config.clip_range).sum()
    ratios = torch.exp(logps.detach() - old_logps)
    found = metrics(ratios, advantages, made, out["entropy"].detach(), batch, config)
    return LossOutput(terms={"trained": loss.float()}, metrics=found)
