"""A loss over the completions of a prompt: the cross-entropy of softmax(rewards) and softmax(mean log-probs), a mean
over the prompts of the optimizer step. All completions of a prompt must stand in one micro-batch."""

from dataclasses import dataclass

import torch

from ft_host.api import (
    GroupedRolloutConfig,
    LossOutput,
    Rollout,
    completion_batch,
    completion_metrics,
    completion_row,
    hookimpl,
    option,
    prompt_row,
    sum_by_row,
)


@dataclass(kw_only=True)
class Config(GroupedRolloutConfig):
    """Rank the completions of a prompt as their rewards do."""

    whole_groups = True
    num_generations: int = option(4, "Completions of a prompt.", group="rollouts", gt=1)


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout):
    size = rollout.config.num_generations
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    found = [
        completion_row(rows[place // size], completion) | {"reward": reward or 0.0}
        for place, (completion, reward) in enumerate(zip(completions, rewards.totals(), strict=True))
    ]
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size)
    return Rollout(rows=found, metrics=metrics, samples=rewards.samples(rows))


@hookimpl
def ft_collate(rows, tokenizer, config):
    batch = completion_batch(rows, numbers=("group", "reward"))
    batch.counts["prompts"] = len(rows) / config.num_generations
    return batch


@hookimpl
def ft_loss(model, batch, run):
    logp = model(batch, want=("logp",), temperature=run.config.temperature)["logp"]
    scores = sum_by_row(logp, batch) / sum_by_row(torch.ones_like(logp), batch)
    wanted, groups = batch.columns["reward"], batch.columns["group"]
    losses = scores.new_zeros(())
    for group in groups.unique():
        inside = groups == group
        if int(inside.sum()) != run.config.num_generations:
            raise RuntimeError("some completions of a prompt are in another micro-batch")
        losses = losses - (wanted[inside].softmax(0) * scores[inside].log_softmax(0)).sum()
    return LossOutput(terms={"prompts": losses})
