"""PPO: sample completions, score them, and raise the likelihood of the tokens that did better than expected (proximal
policy optimization, arXiv 1707.06347; on language models arXiv 1909.08593 and 2203.02155).

    r_t  = -kl_coef KL_t  (+ the completion's score, at its last token)     KL_t = log p(t) - log p_ref(t), or k3
    d_t  = r_t + gamma V(t+1) - V(t)                                        V after the last token is 0
    A_t  = d_t + gamma lam A(t+1),  R_t = A_t + V(t)                        GAE, arXiv 1506.02438; then A is whitened
    loss = 1/N sum_t  w_t max(-A_t q_t, -A_t clip(q_t, 1 - e, 1 + e))       q_t = p_new(t) / p(t)
         + vf_coef 1/N sum_t  1/2 max((V_new(t) - R_t)^2, (clip(V_new(t), V(t) - c, V(t) + c) - R_t)^2)

p and V are those of the policy and the value model that the rollout began with: made once, kept with the rows, and used
for all passes. N: sampled tokens of the optimizer step, on all ranks. V(t) is read at the state that predicts token t,
so that no value sees the token it is a baseline for. w_t is 1 where p is what sampled, else p / p_sampler
(`corrections`).

Simplified: time counts sampled tokens. Tool output has no value, no reward and no target; GAE steps over it. An episode
that was cut short by max_completion_length is treated as ended: its value after the last token is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ft_host.api import (
    Batch,
    LossOutput,
    ModelSpec,
    Rollout,
    annotate,
    by_row,
    completion_batch,
    completion_metrics,
    completion_row,
    explained,
    hookimpl,
    masked_row,
    maximum,
    mean,
    policy_values,
    prompt_row,
    total,
    variance,
    widened,
)
from ft_ppo import corrections
from ft_ppo.completions import cut_after, stop_token_of

# ---------------------------------------------------------------- maths


def k1(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """The log-ratio: unbiased, of either sign. Nats, any shape."""
    return logps - ref_logps


def k3(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """q - 1 - log q with q = p_ref / p: unbiased, never negative (joschu.net/blog/kl-approx.html)."""
    return torch.expm1(ref_logps - logps) - (ref_logps - logps)


ESTIMATORS = {"k1": k1, "k3": k3}


def token_rewards(kl: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Return the reward of each token: (R, T) KL, (R,) scores, (R,) lengths, to (R, T); rows without tokens
    have none.
    """
    rewards = -kl_coef * kl
    rows = lengths.nonzero()[:, 0]
    rewards[rows, lengths[rows] - 1] += scores[rows]
    return rewards


def gae(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns, (R, T) each, from (R, T) rewards and values that are 0 after the end of a row."""
    advantages = torch.zeros_like(values)
    advantage = following = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = delta + gamma * lam * advantage
        advantages[:, t], following = advantage, values[:, t]
    return advantages, advantages + values


def whiten(values: torch.Tensor, average: float, spread: float, shift_mean: bool = True) -> torch.Tensor:
    """Scale values with that mean and variance to a variance of 1; without `shift_mean` their mean stays."""
    return (values - average) * (spread + 1e-8) ** -0.5 + (0.0 if shift_mean else average)


# Same values as ft_sdpo.losses.clipped
def policy_losses(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective of each token, and where it is the clipped one that counts. (N,) each."""
    ratio = torch.exp(logps - old_logps)
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return half the squared error of each value, at least that of the clipped value, and where the clipped one
    counts.
    """
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


# ---------------------------------------------------------------- what a rollout is told once


def policy_says(model: Any, batch: Batch, temperature: float) -> dict[str, list[torch.Tensor]]:
    """Return log-probs and values of the targets, by row."""
    out = model(batch, want=("logp", "value"), temperature=temperature)
    return {"old_logps": by_row(out["logp"], batch), "values": by_row(out["value"], batch)}


def reference_says(model: Any, batch: Batch, temperature: float) -> dict[str, list[torch.Tensor]]:
    """Return log-probs of the targets, by row."""
    return {"ref_logps": by_row(model(batch, want=("logp",), temperature=temperature)["logp"], batch)}


def rectangle(rows: list[dict], name: str, width: int) -> torch.Tensor:
    """Return a column of lists as (R, width) in float64, 0 after the end of each: float32 would lose a digit at each
    sum.
    """
    filled = [row[name] + [0.0] * (width - len(row[name])) for row in rows]
    return torch.tensor(filled, dtype=torch.float64).reshape(len(rows), width)


def moments(values: torch.Tensor, gather: Callable[[Any], list[Any]]) -> tuple[float, float]:
    """Return mean and unbiased variance of the (n,) values of all ranks; of a single value the variance is 0."""
    parts = gather((len(values), float(values.sum())))
    count = sum(size for size, _ in parts)
    average = sum(added for _, added in parts) / max(count, 1)
    squares = sum(gather(float((values - average).square().sum())))
    return average, squares / max(count - 1, 1)


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, before its first update: what policy, value model and reference say of it, and what follows."""
    config = run.config
    rows = policy_values(rows, run, partial(policy_says, temperature=config.temperature))
    if config.kl_coef:
        rows = annotate(rows, run, "reference", partial(reference_says, temperature=config.temperature))
    sizes = [len(row["values"]) for row in rows]
    width, lengths = max(sizes, default=0), torch.tensor(sizes, dtype=torch.long)
    mask = torch.arange(width) < lengths[:, None]
    logps, values = rectangle(rows, "old_logps", width), rectangle(rows, "values", width)
    weights = None
    if config.correction != "none":
        weights = corrections.sampler_weights(logps, rectangle(rows, "sampling_logps", width), mask, config)
    kl = torch.zeros_like(logps)
    if config.kl_coef:
        kl = ESTIMATORS[config.kl_estimator](logps, rectangle(rows, "ref_logps", width))
    scores = torch.tensor([row["score"] or 0.0 for row in rows], dtype=torch.float64)
    rewards = token_rewards(kl, scores, lengths, config.kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, *moments(rewards[mask], run.gather), shift_mean=False) * mask
    advantages, returns = gae(rewards, values, config.gamma, config.lam)
    advantages = whiten(advantages, *moments(advantages[mask], run.gather)) * mask
    run.state["episode"] = run.state.get("episode", 0) + sum(run.gather(len(rows)))
    found = []
    for index, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        kept = {name: value for name, value in row.items() if name != "ref_logps"}
        found.append(
            kept
            | {
                "advantages": advantages[index, :size].tolist(),
                "returns": returns[index, :size].tolist(),
                "advantage": sum(advantages[index, :size].tolist()) / max(size, 1),  # which samples.jsonl shows
                "kl": sum(kl[index, :size].tolist()),
                "surprise": -sum(row["old_logps"]),
                "episode": run.state["episode"],
            }
            | ({} if weights is None else {"weights": weights[index, :size].tolist()})
        )
    return found


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_models(config) -> dict[str, ModelSpec]:
    specs = {
        "value": ModelSpec(
            head="value", trained=True, source=config.value_model, field="value_model", shares_policy=config.value_head
        )
    }
    if config.kl_coef:
        specs["reference"] = ModelSpec(source=config.ref_model, field="ref_model")
    return specs


@hookimpl
def ft_prepare(row, tokenizer, config):
    stop_token_of(config, tokenizer)  # refused with the first row, before a model is loaded
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """One completion of each prompt, with its score. A completion without one stays, without targets."""
    stop, penalty = stop_token_of(rollout.config, rollout.tokenizer), rollout.config.missing_eos_penalty or 0.0
    completions = [cut_after(each, stop) for each in rollout.generate(rows, 1)]
    rewards = rollout.reward(rows, completions)
    found = []
    for prompt, completion, score in zip(rows, completions, rewards.totals(), strict=True):
        row = completion_row(prompt, completion)
        if score is None:
            row = masked_row(row)
        elif row["truncated"]:
            score -= penalty
        found.append(row | {"score": score})
    unscored = total(sum(row["score"] is None for row in found))
    metrics = rewards.metrics | completion_metrics(completions) | {"objective/unscored": unscored}
    return Rollout(rows=found, metrics=metrics, samples=rewards.samples(rows))


OF_TARGETS = ("old_logps", "values", "returns", "advantages", "sampling_logps", "weights")
OF_ROWS = ("kl", "surprise", "episode")


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = completion_batch(rows, targets=OF_TARGETS, numbers=OF_ROWS, dtype=torch.float64)
    batch.columns["scores"] = torch.tensor([row["score"] or 0.0 for row in rows], dtype=torch.float64)
    batch.counts["scored"] = batch.counts.pop("trained")
    batch.counts["ended"] = sum(not row["truncated"] for row in rows)
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, columns, counts = run.config, batch.columns, batch.counts
    out = model(batch, want=("logp", "entropy", "value"), temperature=config.temperature)
    old_logps, advantages, returns = columns["old_logps"], columns["advantages"], widened(columns["returns"])
    of_policy, policy_clipped = policy_losses(out["logp"], old_logps, advantages, config.cliprange)
    of_value, value_clipped = value_losses(out["value"], columns["values"], columns["returns"], config.cliprange_value)
    of_policy = of_policy * columns.get("weights", 1.0)
    loss = of_policy.sum() + config.vf_coef * of_value.sum()

    apart = out["logp"].detach() - old_logps
    beyond = torch.expm1(apart)  # ratio - 1
    tokens, scored, scores = counts["tokens"], counts["scored"], columns["scores"].sum()
    penalties = -config.kl_coef * columns["kl"].sum()
    metrics = {
        "objective/scores": mean(scores, scored),
        "objective/rlhf_reward": mean(scores + penalties, scored),
        "objective/entropy": mean(columns["surprise"].sum(), scored),
        "policy/approxkl_avg": mean(0.5 * apart.square().sum(), tokens),
        "policy/clipfrac_avg": mean(policy_clipped.sum(), tokens),
        "policy/entropy_avg": mean(out["entropy"].detach().sum(), tokens),
        "loss/policy_avg": mean(of_policy.detach().sum(), tokens),
        "loss/value_avg": mean(of_value.detach().sum(), tokens),
        "val/clipfrac_avg": mean(value_clipped.sum(), tokens),
        "val/explained_variance": explained(
            (returns - columns["values"]).square().sum(), returns.sum(), returns.square().sum(), tokens
        ),
        "val/ratio": mean(beyond.sum() + tokens, tokens),
        "val/ratio_var": variance(beyond.sum(), beyond.square().sum(), tokens),
        "val/num_eos_tokens": total(counts["ended"]),
    } | corrections.metrics(batch)
    if config.kl_coef:
        metrics["objective/kl"] = mean(columns["kl"].sum(), scored)
        metrics["objective/non_score_reward"] = mean(penalties, scored)
    if batch.num_rows:
        metrics["episode"] = maximum(columns["episode"].max())
    return LossOutput(terms={"tokens": loss}, metrics=metrics)
