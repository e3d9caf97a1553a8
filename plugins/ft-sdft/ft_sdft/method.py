"""SDFT: complete prompts with the policy, and learn to say of each token what the same model says that is shown a
demonstration beside the prompt (self-distillation fine-tuning, arXiv 2601.19897).

    loss = 1/N sum_i  1/T_i sum_t  w(t) D( p(. | prompt, y_<t)  ,  p_teacher(. | prompt, demonstration, y_<t) )

y is completion i, of T_i tokens, sampled by the policy; N: completions with targets of the optimizer step, on all
ranks. D is a divergence of `ft_sdft.losses`. The teacher is the policy as the run found it, as it is, or a moving
average of it; it has no gradient. w(t) is 1 in the first update of a rollout; afterwards, the ratio of the policy to
the one that sampled, clipped.

The teacher is asked about the same tokens behind a prompt of its own: a second batch lies beside the student's
(`batch.linked["teacher"]`), with the same targets in the same order. Its hidden states live for a micro-batch, and
logits of the two for a tile of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ft_host.api import (
    Batch,
    DataError,
    Drop,
    LossOutput,
    Metric,
    ModelSpec,
    Rollout,
    RowError,
    TiledDivergence,
    by_row,
    completion_batch,
    completion_metrics,
    completion_row,
    content_of,
    hookimpl,
    kind_of,
    mean,
    messages_of,
    policy_values,
    prompt_row,
    sampling_metrics,
    widened,
)
from ft_sdft.config import CONTEXT, SDFTConfig
from ft_sdft.losses import LOSSES, importance, tokens_of

# ---------------------------------------------------------------- maths


def token_weights(rows: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) 1 / T_i of each token, from its row, (N,) long in [0, count): the mean over the tokens of a completion."""
    sizes = rows.new_zeros(count).index_add(0, rows, torch.ones_like(rows))  # bincount would wait for the device
    return 1 / widened(sizes[rows])


def distilled(
    student: torch.Tensor,  # (n, V) logits
    teacher: torch.Tensor,  # (n, V) logits
    units: slice,  # where these n tokens are among the N
    *,
    targets: torch.Tensor,  # (N,)
    weights: torch.Tensor,  # (N,)
    old_logps: torch.Tensor | None,  # (N,)
    config: SDFTConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of some tokens: their sum, and (n,) values of each."""
    tokens = tokens_of(student, teacher, targets[units])
    losses = LOSSES[config.distillation_mode](tokens, config)
    if old_logps is not None:
        losses = losses * importance(tokens.student_logps, old_logps[units], config.distillation_is_clip)
    with torch.no_grad():
        entropy = tokens.student_norm[:, 0] - (student.softmax(-1) * student).sum(-1)
    values = {
        "losses": losses,
        "logps": tokens.student_logps,
        "teacher_logps": tokens.teacher_logps,
        "entropy": entropy,
    }
    return (losses * weights[units].to(losses.dtype)).sum(), values


# ---------------------------------------------------------------- hooks: rows


def text_of_context(context: Any) -> str:
    """A demonstration as text: text, messages one below the other, or what str makes of it."""
    if isinstance(context, str):
        return context
    if isinstance(context, list):
        said = [content_of(message) for message in messages_of(context, CONTEXT)]
        return "\n".join(each for each in said if each)
    if context is None or isinstance(context, dict):
        raise RowError(f"column {CONTEXT}: found {kind_of(context)}, expected text or messages", CONTEXT)
    return str(context)


def teacher_prompt(prompt: str | list[dict], context: str, config: SDFTConfig) -> str | list[dict]:
    """What the teacher is asked. Of a conversation its last message is replaced, which must be the user's."""
    if isinstance(prompt, str):
        return config.teacher_prompt_template.format(prompt=prompt, privileged_context=context)
    last = prompt[-1]
    if last["role"] != "user":
        raise RowError(
            f"column prompt: ends with a message of {last['role']!r}, expected 'user': the demonstration goes into the "
            "user's last message",
            "prompt",
        )
    asked = config.teacher_prompt_template.format(prompt=content_of(last), privileged_context=context)
    return [*prompt[:-1], {"role": "user", "content": asked}]


@hookimpl
def ft_prepare(row, tokenizer, config):
    """The prompts of student and teacher. A held-out row may be without a demonstration: it is only completed."""
    found = prompt_row(row, tokenizer, config)
    if isinstance(found, Drop) or CONTEXT not in row:
        return found
    if row.get("input_ids") is not None:
        raise RowError(
            "input_ids: a prompt of tokens can't be put into teacher_prompt_template; expected text or messages"
        )
    context = text_of_context(row[CONTEXT])
    asked = teacher_prompt(found["prompt"], context, config)
    teacher = prompt_row(row | {"prompt": asked}, tokenizer, config)
    if isinstance(teacher, Drop):
        return Drop("the teacher's prompt is longer than max_length")
    ids = teacher["prompt_ids"]
    return found | {"teacher_prompt_ids": ids, "shown": bool(context.strip()), "length": max(found["length"], len(ids))}


@hookimpl
def ft_models(config) -> dict[str, ModelSpec]:
    kinds = {
        "base": ModelSpec(),
        "live": ModelSpec(current_policy=True),
        "ema": ModelSpec(sync_steps=config.teacher_sync_steps, sync_alpha=config.teacher_update_rate),
    }
    return {"teacher": kinds[config.teacher_model_kind]}


# ---------------------------------------------------------------- hooks: rollouts


def asked_as_teacher(row: dict) -> dict:
    return row | {"prompt_ids": row["teacher_prompt_ids"]}


def distilled_row(prompt: dict, completion: Any, skipped: int) -> dict:
    """A completion as a row to train on, without targets among its first `skipped` tokens."""
    row = completion_row(prompt, completion)
    longer = max(len(prompt["teacher_prompt_ids"]) - len(row["prompt_ids"]), 0)
    return row | {
        "teacher_prompt_ids": prompt["teacher_prompt_ids"],
        "sampled": [own and place >= skipped for place, own in enumerate(row["sampled"])],
        "sampling_logps": row["sampling_logps"][skipped:],
        "length": row["length"] + longer,  # of the longer of its two sequences, as both have to fit
        "shared": row["shared"] + longer,
    }


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """The completions of each prompt, and what they earn where someone wants to know."""
    config, size = rollout.config, rollout.config.num_generations
    for row in rows:
        if "teacher_prompt_ids" not in row:
            raise DataError(f"a row has no {CONTEXT}: that of the prompt {str(row['prompt'])[:80]!r}")
    asked = [asked_as_teacher(row) for row in rows] if config.generate_from_teacher else rows
    completions = rollout.generate(asked, size)
    found = [
        distilled_row(row, completions[index * size + place], config.num_loss_tokens_to_skip)
        for index, row in enumerate(rows)
        for place in range(size)
    ]
    metrics = completion_metrics(completions)
    metrics["self_distillation/empty_context_fraction"] = mean(sum(not row["shown"] for row in rows), len(rows))
    if config.num_loss_tokens_to_skip:
        nothing = sum(not any(row["sampled"]) for row in found)
        metrics["self_distillation/without_loss_fraction"] = mean(nothing, len(found))
    texts = [rollout.tokenizer.decode(each.token_ids, skip_special_tokens=True) for each in completions]
    watched, earned = rollout.watch(rows, completions)
    samples = [
        {"prompt": rows[index // size]["prompt"], "completion": text} | earned[index]
        for index, text in enumerate(texts)
    ]
    return Rollout(rows=found, metrics=metrics | watched, samples=samples)


# Same as ft_sdpo.method.log_probs
def log_probs(model: Any, batch: Batch, temperature: float) -> dict[str, list[torch.Tensor]]:
    return {"old_logps": by_row(model(batch, want=("logp",), temperature=temperature)["logp"], batch)}


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, before its first update: the policy's log-probs, where it is used more than once."""
    config = run.config
    if run.rollouts.updates == 1 or not config.weighs_tokens:
        return None
    return policy_values(rows, run, partial(log_probs, temperature=config.temperature))


# ---------------------------------------------------------------- hooks: the loss


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = completion_batch(rows, targets=("sampling_logps", "old_logps"))
    batch.linked["teacher"] = completion_batch([asked_as_teacher(row) for row in rows])
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, teacher = run.config, run.models["teacher"]
    weighed = run.rollouts.updates > 1 and config.weighs_tokens
    states = teacher(batch.linked["teacher"], want=("hidden",), temperature=config.temperature)["hidden"]
    function = partial(
        distilled,
        targets=batch.targets,
        weights=token_weights(batch.rows, batch.num_rows),
        old_logps=batch.columns["old_logps"] if weighed else None,
        config=config,
    )
    divergence = TiledDivergence(states, teacher.logits_head(config.temperature), function)
    out = model(batch, want=(), temperature=config.temperature, divergence=divergence)
    found = metrics(out, batch, config) if len(batch.targets) else {}
    return LossOutput(terms={"trained": out["divergence"]}, metrics=found)


def metrics(out: dict[str, torch.Tensor], batch: Batch, config: SDFTConfig) -> dict[str, Metric]:
    """Means over tokens with a loss."""
    tokens = batch.counts["tokens"]
    found = {
        "self_distillation/distillation_loss": mean(out["losses"].sum(), tokens),
        "self_distillation/teacher_logp_difference": mean((out["teacher_logps"] - out["logps"]).abs().sum(), tokens),
        "entropy": mean(out["entropy"].sum(), tokens),
    }
    if not config.generate_from_teacher:  # else it was sampled behind another prompt
        old_logps = batch.columns["old_logps"] if "old_logps" in batch.columns else out["logps"]
        apart = (old_logps - batch.columns["sampling_logps"]).abs()
        found |= sampling_metrics(apart, tokens)
    return found
