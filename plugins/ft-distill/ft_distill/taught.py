"""What distill and gkd have in common: a teacher, the loss of a batch against it, and rewards that are only watched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ft_distill.divergence import Taught
from ft_host.batch import Batch
from ft_host.generation import Completion
from ft_host.metrics import Metric, maximum, mean, std
from ft_host.models.against import Against
from ft_host.run import ModelSpec

Row = dict[str, Any]


def teacher_of(config: Any) -> ModelSpec:
    return ModelSpec(
        source=config.teacher_model_name_or_path,
        field="teacher_model_name_or_path",
        revision=config.teacher_model_revision,
        padded=True,  # the models of a family may have embeddings of other sizes for the same tokens
        otherwise="ft-gold (ft-host train gold) is for a teacher with another tokenizer",
    )


def against_teacher(model: Any, batch: Batch, run: Any) -> dict[str, torch.Tensor]:
    """`against`, the loss of this batch's share of the step, and, where it has targets, their values (N,): see
    `ft_distill.divergence`. The teacher's hidden states live for a micro-batch, and logits of the two for a tile of it."""
    config, teacher = run.config, run.models["teacher"]
    head = teacher.logits_head(config.temperature)
    # a student whose embedding is larger may have sampled what is no token at all
    read = replace(batch, input_ids=batch.input_ids.clamp(max=head.vocabulary - 1))
    states = teacher(read, want=("hidden",), temperature=config.temperature)["hidden"]
    function = Taught(targets=batch.targets, weight=1 / max(run.totals["tokens"], 1), beta=config.beta)
    return model(batch, want=(), temperature=config.temperature, against=Against(states, head, function))


def metrics_of(out: dict[str, torch.Tensor], tokens: float) -> dict[str, Metric]:
    """Means over all targets."""
    return {
        "entropy": mean(out["entropy"].sum(), tokens),
        "distillation/divergence": mean(out["losses"].sum(), tokens),
        "distillation/teacher_agreement": mean(out["agree"].sum(), tokens),
    }


def sampling_metrics(apart: torch.Tensor, count: float) -> dict[str, Metric]:
    """Of how far the sampler's log-probs are from the trainer's: (N,), of which `count` tokens were sampled by the policy,
    and the others have 0."""
    if not count:
        return {}
    return {
        "sampling/sampling_logp_difference/mean": mean(apart.sum(), count),
        "sampling/sampling_logp_difference/max": maximum(apart.max()),
    }


def watched(rows: list[Row], completions: list[Completion], run: Any) -> tuple[dict[str, Metric], list[Row]]:
    """What completions of these prompts earn, and of each of them what samples.jsonl shows. Nothing is learnt from it."""
    if not run.config.reward:
        return {}, [{} for _ in completions]
    rewards = run.reward(rows, completions)
    given = [value for value in rewards.totals() if value is not None]
    metrics = rewards.metrics | {
        "reward": mean(sum(given), len(given)),
        "reward_std": std(sum(given), sum(value * value for value in given), len(given)),
    }
    return metrics, [{"rewards": dict(zip(rewards.names, values, strict=True))} for values in rewards.values]
