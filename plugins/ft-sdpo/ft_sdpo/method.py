"""SDPO: attempt each prompt several times, show the same model a successful attempt or feedback, and learn to say of
each attempt what it then says of it (reinforcement learning via self-distillation, arXiv 2601.20802).

    loss = w 1/M sum_i  1/T_i sum_t  v(t) D( p(. | prompt, y_<t)  ,  p_teacher(. | reprompt_i, y_<t) )
           + (1 - w) sum_i sum_t  - scale(t) min(q A_i, clip(q) A_i)

y is completion i, of T_i tokens, sampled by the policy; i goes in the first sum over the M completions of the optimizer
step, on all ranks, for which there is something to show (`ft_sdpo.reprompt`), in the second over all. D is a divergence
of `ft_sdpo.losses`, w `distillation_weight`, A_i what completion i earns beside others of its prompt. q = p / p_old;
v(t) is q, clipped, without gradient. Both are 1 in the first update of a rollout. The teacher is a moving average of
the policy, the policy as it is, or as the run found it, and has no gradient.

The teacher is asked about the same tokens behind a prompt of its own: a second batch lies beside the student's
(`batch.linked["teacher"]`), with the targets of completions that are taught, in the same order. A completion that
neither sum is about isn't computed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ft_host.api import (
    Batch,
    Drop,
    LossOutput,
    Metric,
    ModelSpec,
    Rollout,
    RowError,
    Segment,
    TiledDivergence,
    by_row,
    completion_metrics,
    completion_row,
    completion_segments,
    flat_batch,
    hookimpl,
    kind_of,
    masked_row,
    mean,
    num_targets,
    opened_by,
    per_target,
    policy_values,
    prompt_row,
    sampling_metrics,
    to_device,
)
from ft_sdpo.config import CONTEXT, FEEDBACK, SDPOConfig
from ft_sdpo.losses import DISTANCES, DIVISORS, SCALES, advantages, clipped, importance, ratios, tokens_of
from ft_sdpo.reprompt import attempts, feedback_of, metrics_of, teacher_ids

# ---------------------------------------------------------------- maths


def distilled(
    student: torch.Tensor,  # (n, V) logits
    teacher: torch.Tensor,  # (m, V) logits, of those that are taught
    units: slice,  # where these n tokens are among the N
    *,
    targets: torch.Tensor,  # (N,)
    taught: torch.Tensor,  # (N,) bool, on the host: a device would have to be waited for
    weights: torch.Tensor,  # (N,)
    old_logps: torch.Tensor | None,  # (N,)
    config: SDPOConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The distillation of some tokens: their sum, and (m,) values of each."""
    [which] = to_device([taught[units].nonzero()[:, 0]], student.device)
    ours = student if len(student) == len(teacher) else student.index_select(0, which)
    tokens = tokens_of(ours, teacher, targets[units][which])
    losses = DISTANCES[config.distillation_mode](tokens, config)
    if old_logps is not None:
        losses = losses * importance(tokens.student_logps, old_logps[units][which], config.distillation_is_clip)
    with torch.no_grad():
        entropy = tokens.student_norm[:, 0] - (ours.softmax(-1) * ours).sum(-1)
    values = {
        "losses": losses,
        "taught_logps": tokens.student_logps,
        "teacher_logps": tokens.teacher_logps,
        "taught_entropy": entropy,
    }
    return (losses * weights[units][which].to(losses.dtype)).sum(), values


# ---------------------------------------------------------------- hooks: rollouts


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    if not config.distillation_weight:
        return None
    kinds = {
        "base": ModelSpec(),
        "live": ModelSpec(current_policy=True),
        "ema": ModelSpec(sync_steps=config.teacher_sync_steps, sync_alpha=config.teacher_update_rate),
    }
    return {"teacher": kinds[config.teacher_model_kind]}


@hookimpl
def ft_prepare(row, tokenizer, config):
    found = prompt_row(row, tokenizer, config)
    if isinstance(found, Drop) or not config.distillation_weight:
        return found
    if row.get("input_ids") is not None:
        raise RowError("input_ids: a prompt of tokens can't be put into reprompt_template; expected text or messages")
    if not isinstance(found["prompt"], str) and found["prompt"][-1]["role"] != "user":
        raise RowError(
            f"column prompt: ends with a message of {found['prompt'][-1]['role']!r}, expected 'user': what the teacher"
            " is shown goes into the user's last message",
            "prompt",
        )
    feedback = row.get(CONTEXT)
    if config.include_environment_feedback and not isinstance(feedback, str | None):
        raise RowError(f"column {CONTEXT}: found {kind_of(feedback)}, expected text, or nothing", CONTEXT)
    return found


def attempt_row(prompt: dict, completion: Any, reward: float | None, asked: Any, config: SDPOConfig) -> dict:
    """A completion as a row to train on. `teacher_prompt_ids` is empty where nothing is distilled; a row that nothing
    else is learnt from either has no targets."""
    row = completion_row(prompt, completion) | {"reward": reward, "teacher_prompt_ids": []}
    if config.mask_truncated_completions and row["truncated"]:
        return masked_row(row)
    if isinstance(asked, list):
        longest = max(row["length"], len(asked) + len(row["completion_ids"]))  # as both sequences have to fit
        return row | {"teacher_prompt_ids": asked, "length": longest, "shared": 0}
    return masked_row(row) if config.distillation_weight == 1 else row


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """The completions of each prompt, what they earn, and what their teachers are asked."""
    config, size = rollout.config, rollout.config.num_generations
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    totals, logged = rewards.totals(), rewards.extra.get(FEEDBACK)
    shown, earned, found = [], [], []
    asked: list[list[Any]] = []
    for index, prompt in enumerate(rows):
        group = slice(index * size, (index + 1) * size)
        feedback = feedback_of(prompt, None if logged is None else logged[group], size)
        opened = opened_by(prompt["prompt_ids"], rollout.tokenizer)
        shown.append(attempts(rewards.texts[group], totals[group], feedback, config, opened))
        earned.append(totals[group])
        asked.append([None] * size)
        if config.distillation_weight:
            asked[-1] = teacher_ids(prompt, shown[-1], rollout.tokenizer, config)
        found += [
            attempt_row(prompt, *each, config)
            for each in zip(completions[group], totals[group], asked[-1], strict=True)
        ]
    decode = rollout.tokenizer.decode
    samples = [
        sample | {"reprompt": decode(row["teacher_prompt_ids"]) if row["teacher_prompt_ids"] else None}
        for sample, row in zip(rewards.samples(rows), found, strict=True)
    ]
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size)
    metrics["self_distillation/group_reward_std_mean"] = mean_spread(earned)
    if config.distillation_weight:
        metrics |= metrics_of(shown, earned, asked, config)
    return Rollout(rows=found, metrics=metrics, samples=samples)


def mean_spread(groups: list[list[float | None]]) -> Metric:
    """The mean over groups of the standard deviation of their rewards; those with one reward or none have none."""
    known = [[reward for reward in group if reward is not None] for group in groups]
    spreads = [float(torch.tensor(group, dtype=torch.float64).std()) for group in known if len(group) > 1]
    return mean(sum(spreads), len(spreads))


# Same as ft_sdft.method.log_probs
def log_probs(model: Any, batch: Batch, temperature: float) -> dict[str, list[torch.Tensor]]:
    return {"old_logps": by_row(model(batch, want=("logp",), temperature=temperature)["logp"], batch)}


def compared(earned: list[tuple[int, float]], scale: str) -> list[float]:
    """Advantages of the completions of all ranks, each given as its group and what it earned, nan for nothing."""
    groups, rewards = zip(*earned, strict=True) if earned else ((), ())
    made = advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups, dtype=torch.long), scale)
    return made.tolist()


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, before its first update: the policy's log-probs where it is used more than once, and
    advantages."""
    config = run.config
    if run.rollouts.updates > 1 and config.needs_old:
        rows = policy_values(rows, run, partial(log_probs, temperature=config.temperature))
    if config.distillation_weight == 1:
        return rows
    earned = [(row["group"], torch.nan if row["reward"] is None else row["reward"]) for row in rows]
    made = run.over_ranks(earned, partial(compared, scale=config.scale_rewards))
    return [row | {"advantage": advantage} for row, advantage in zip(rows, made, strict=True)]


# ---------------------------------------------------------------- hooks: the loss


def segments_of(rows: list[dict], places: list[int], prompt: str = "prompt_ids") -> list[Segment]:
    """Those of the rows at `places`, behind the prompt in the column `prompt`."""
    kept = [rows[place] | {"prompt_ids": rows[place][prompt]} for place in places]
    return [replace(segment, row=places[segment.row]) for segment in completion_segments(kept)]


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    trained = [place for place, row in enumerate(rows) if any(row["sampled"])]
    taught = [place for place in trained if rows[place]["teacher_prompt_ids"]]
    columns = {
        name: per_target([rows[place] for place in trained], name)
        for name in ("sampling_logps", "old_logps")
        if all(name in row for row in rows)  # not yet while they are made, and not always needed
    }
    columns["taught"] = torch.tensor([bool(row["teacher_prompt_ids"]) for row in rows], dtype=torch.bool)
    if all("advantage" in row for row in rows):
        columns["advantages"] = torch.tensor([row["advantage"] for row in rows], dtype=torch.float32)
    batch = flat_batch(segments_of(rows, trained), num_rows=len(rows), columns=columns)
    batch.linked["teacher"] = flat_batch(segments_of(rows, taught, "teacher_prompt_ids"), num_rows=len(rows))
    batch.counts = {
        "rows": len(rows),
        "trained": len(trained),
        "tokens": len(batch.targets),
        "taught": len(taught),
        "taught_tokens": sum(num_targets(rows[place]) for place in taught),
    }
    return batch


def divergence_of(batch: Batch, run: Any, sizes: torch.Tensor) -> TiledDivergence:
    """The divergence from the teacher, of the tokens that are taught."""
    config, teacher = run.config, run.models["teacher"]
    states = teacher(batch.linked["teacher"], want=("hidden",), temperature=config.temperature)["hidden"]
    weighed = run.rollouts.updates > 1 and config.distillation_is_clip is not None
    by_row = zip(batch.linked["teacher"].row_sizes, batch.row_sizes, strict=True)
    taught = torch.tensor([there > 0 for there, here in by_row for _ in range(here)], dtype=torch.bool)
    function = partial(
        distilled,
        targets=batch.targets,
        taught=taught,
        weights=1 / sizes,
        old_logps=batch.columns["old_logps"] if weighed else None,
        config=config,
    )
    units = None if len(states) == len(batch.targets) else [(1, int(each)) for each in taught.tolist()]
    return TiledDivergence(states, teacher.logits_head(config.temperature), function, units)


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, weight = run.config, run.config.distillation_weight
    [by_rows] = to_device([torch.tensor(batch.row_sizes, dtype=torch.float64)], batch.rows.device)
    sizes = by_rows[batch.rows]  # (N,) of each token's row
    divergence = divergence_of(batch, run, sizes) if weight else None
    want = ("logp", "entropy") if weight < 1 else ()
    out = model(batch, want=want, temperature=config.temperature, divergence=divergence)
    terms, found = {"taught": weight * out["divergence"]} if weight else {}, {}
    if weight < 1:
        old_logps = batch.columns["old_logps"] if run.rollouts.updates > 1 else out["logp"].detach()
        q = ratios(out["logp"] - old_logps, batch.rows, by_rows, config.importance_sampling_level)
        gains = batch.columns["advantages"][batch.rows]
        scale, count = SCALES[config.loss_type](sizes, config).to(q.dtype), DIVISORS[config.loss_type]
        policy_loss = (clipped(q, gains, config.clip_range) * scale).sum()
        found["self_distillation/policy_loss"] = mean(policy_loss, batch.counts[count])
        if run.rollouts.updates > 1:
            found |= clip_metrics(q.detach(), gains, batch, config)
        terms[count] = (1 - weight) * policy_loss
    return LossOutput(terms=terms, metrics=found | metrics(out, batch))


def clip_metrics(q: torch.Tensor, gains: torch.Tensor, batch: Batch, config: SDPOConfig) -> dict[str, Metric]:
    """Shares of tokens whose ratio is beyond the range, on the side where that is clipped."""
    least, most = config.clip_range
    low, high = (q < least) & (gains < 0), (q > most) & (gains > 0)
    return {
        f"clip_ratio/{name}_mean": mean(values.sum(), batch.counts["tokens"])
        for name, values in (("low", low), ("high", high), ("region", low | high))
    }


def metrics(out: dict[str, torch.Tensor], batch: Batch) -> dict[str, Metric]:
    """Means over tokens: of the distillation over those that are taught, otherwise over all with a loss."""
    tokens, taught = batch.counts["tokens"], batch.counts["taught_tokens"]
    found: dict[str, Metric] = {}
    if taught:
        apart = (out["teacher_logps"] - out["taught_logps"]).abs()
        found["self_distillation/distillation_loss"] = mean(out["losses"].sum(), taught)
        found["self_distillation/teacher_logp_difference"] = mean(apart.sum(), taught)
    if tokens:
        logps = out["logp"].detach() if "logp" in out else out["taught_logps"]
        entropy = out["entropy"].detach() if "entropy" in out else out["taught_entropy"]
        apart = (batch.columns.get("old_logps", logps) - batch.columns["sampling_logps"]).abs()
        found["entropy"] = mean(entropy.sum(), tokens)
        found |= sampling_metrics(apart, tokens)
    return found
