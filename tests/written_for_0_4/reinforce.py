"""REINFORCE with the mean of a group as its baseline, written against ft-host 0.4.0 and its docs.

loss = 1/T  sum_i  -(r_i - mean of i's group)  sum_(t in i) log p_t   over the T sampled tokens of the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft_host import hookimpl
from ft_host.batch import forest
from ft_host.config import option
from ft_host.data import prompt_row
from ft_host.diagnostics.rollouts import Names, rollout_rules
from ft_host.generation.config import RolloutConfig, RolloutPlan, grouped_plan
from ft_host.generation.rollout import Rollout
from ft_host.generation.rows import completion_metrics, completion_row, completion_segments, num_targets, per_target
from ft_host.metrics import mean
from ft_host.run import LossOutput


@dataclass(kw_only=True)
class Config(RolloutConfig):
    """REINFORCE."""

    num_generations: int = option(4, "Completions of a prompt.", gt=1)

    def rollout_plan(self, processes: int) -> RolloutPlan:
        return grouped_plan(
            self,
            processes,
            num_generations=self.num_generations,
            steps_per_generation=None,
            generation_batch_size=None,
            num_iterations=1,
        )


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, run):
    size = run.config.num_generations
    completions = run.generate(rows, size)
    rewards = run.reward(rows, completions)
    earned = [value or 0.0 for value in rewards.totals()]
    means = [sum(earned[at : at + size]) / size for at in range(0, len(earned), size)]
    made = [
        completion_row(rows[i // size], completion) | {"advantage": earned[i] - means[i // size]}
        for i, completion in enumerate(completions)
    ]
    samples = [
        {"prompt": rows[i // size]["prompt"], "completion": text, "rewards": {"total": earned[i]}}
        for i, text in enumerate(rewards.texts)
    ]
    return Rollout(rows=made, metrics=rewards.metrics | completion_metrics(completions), samples=samples)


@hookimpl
def ft_collate(rows, tokenizer, config):
    columns = {
        "advantages": torch.tensor([row["advantage"] for row in rows]),
        "sampling_logps": per_target(rows, "sampling_logps"),
    }
    counts = {"tokens": sum(num_targets(row) for row in rows)}
    return forest(completion_segments(rows), num_rows=len(rows), columns=columns, counts=counts)


@hookimpl
def ft_loss(model, batch, run):
    assert run.rollouts.updates == 1
    weight = batch.columns["advantages"][batch.rows]  # (N,)
    out = model(batch, want=("logp", "entropy"), weight=weight, temperature=run.config.temperature)
    apart = (out["logp"].detach() - batch.columns["sampling_logps"]).abs()
    return LossOutput(
        loss=out["nll"] / run.totals["tokens"],
        metrics={
            "entropy": mean(out["entropy"].sum(), batch.counts["tokens"]),
            "apart": mean(apart.sum(), batch.counts["tokens"]),
        },
    )


@hookimpl
def ft_rules():
    return rollout_rules(Names(letters="MYR"))
