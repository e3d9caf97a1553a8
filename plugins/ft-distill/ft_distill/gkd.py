"""GKD: learn from a teacher at each place of completions that are the policy's own, the teacher's, or the data's
(generalised knowledge distillation, arXiv 2306.13649).

    loss = 1/N sum_i  D( p(. | x, y_<i)  ,  p_teacher(. | x, y_<i) )

over the N tokens of the completions of the optimizer step, on all ranks: of the policy for a share `lmbda` of the
prompts (on-policy), of the teacher (`seq_kd`) or of the row itself for the others. D is the generalised Jensen-Shannon
divergence of `ft_distill.divergence`, with the KL divergences for its ends, of both models at `temperature`.

    beta 0, lmbda 0         supervised distillation          beta 0, lmbda 0, seq_kd    sequence-level distillation
    beta 1, lmbda 1         on-policy distillation, as `distill` has it, which samples further ahead and knows tools
"""

from __future__ import annotations

from typing import Any

import torch

from ft_distill.taught import against_teacher, columns_of, metrics_of, scored, teacher_of
from ft_host.api import (
    Batch,
    Drop,
    LossOutput,
    ModelSpec,
    Rollout,
    completed_row,
    completion_batch,
    completion_metrics,
    completion_row,
    hookimpl,
    mean,
    num_targets,
    prompt_row,
    sampling_metrics,
    seed_of,
)

Row = dict[str, Any]


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    return teacher_of(config)


# ---------------------------------------------------------------- rows


OTHERWISE = (
    "with lmbda below 1 gkd learns from completions of the data too. Set lmbda to 1, or seq_kd to let the teacher"
    " complete prompts"
)


@hookimpl
def ft_prepare(row, tokenizer, config):
    """A prompt, and beside it the row's own completion, where completions of the data are used."""
    prompt = prompt_row(row, tokenizer, config)
    if isinstance(prompt, Drop) or not config.uses_data:
        return prompt
    own = completed_row(row, tokenizer, config, OTHERWISE)
    if isinstance(own, Drop):
        return own
    return prompt | {"own": own | {"on_policy": False}, "length": max(prompt["length"], own["length"])}


# ---------------------------------------------------------------- rollouts


# Same as ft_gold.method.on_policy
def on_policy(config: Any, rollout: int, group: int) -> bool:
    """Whether the policy completes this prompt of a rollout: it depends on nothing else, so that a run that goes on, or
    has other processes, draws the same."""
    return seed_of(config.seed, "on policy", rollout, group) < config.lmbda * 2**31


def sampled_row(row: Row, completion: Any, own: bool) -> Row:
    return completion_row(row, completion) | {"on_policy": own}


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """A completion of each prompt, by whoever's turn it is."""
    config, tokenizer = rollout.config, rollout.tokenizer
    mine = [row for row in rows if on_policy(config, rollout.number, row["group"])]
    groups = {row["group"] for row in mine}
    others = [row for row in rows if row["group"] not in groups]
    # all ranks must ask at once, those too that have nothing to ask about
    completions = rollout.generate(mine) if config.samples_policy else []
    metrics, earned = rollout.watch(mine, completions) if config.samples_policy else ({}, [])
    made = {row["group"]: sampled_row(row, completion, True) for row, completion in zip(mine, completions, strict=True)}
    if config.asks_teacher:
        taught = rollout.generate(others, role="teacher")
        made |= {row["group"]: sampled_row(row, each, False) for row, each in zip(others, taught, strict=True)}
    else:
        made |= {row["group"]: row["own"] | {"group": row["group"]} for row in others}
    shown = {row["group"]: more for row, more in zip(mine, earned, strict=True)}
    by = {True: "policy", False: "teacher" if config.seq_kd else "data"}
    found = [made[row["group"]] for row in rows]
    samples = [
        {
            "prompt": row["prompt"],
            "completion": tokenizer.decode(each["completion_ids"], skip_special_tokens=True),
            "extra": {"by": by[each["on_policy"]]},
        }
        | shown.get(row["group"], {})
        for row, each in zip(rows, found, strict=True)
    ]
    metrics |= completion_metrics(completions)
    metrics["distillation/on_policy_share"] = mean(len(mine), len(rows))
    return Rollout(rows=found, metrics=metrics, samples=samples)


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, and of held-out rows: what a teacher says that the backend serves."""
    if run.config.loss_top_k is None:
        return None
    found = scored([row.get("own", row) for row in rows], run)
    return [row | {"own": each} if "own" in row else each for row, each in zip(rows, found, strict=True)]


# ---------------------------------------------------------------- the loss


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    rows = [row | row["own"] | {"group": index} if "own" in row else row for index, row in enumerate(rows)]  # held out
    batch = completion_batch(rows, targets=("sampling_logps",), numbers=("on_policy",), dtype=torch.bool)
    batch.columns |= columns_of(rows, config)
    batch.counts["on_policy"] = sum(num_targets(row) for row in rows if row["on_policy"])
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, out = run.config, against_teacher(model, batch, run)
    if not len(batch.targets):
        return LossOutput(terms={"tokens": out["divergence"]})
    metrics = metrics_of(out, batch)
    own, count = batch.columns["on_policy"][batch.rows], batch.counts["on_policy"]
    if 0 < config.lmbda < 1:
        metrics["distillation/on_policy_loss"] = mean((out["losses"] * own).sum(), count)
        metrics["distillation/off_policy_loss"] = mean((out["losses"] * ~own).sum(), batch.counts["tokens"] - count)
    metrics |= sampling_metrics((out["logps"] - batch.columns["sampling_logps"]).abs() * own, count)
    return LossOutput(terms={"tokens": out["divergence"]}, metrics=metrics)
