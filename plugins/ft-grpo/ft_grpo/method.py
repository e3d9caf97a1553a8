"""GRPO: sample several completions of each prompt, and raise the likelihood of those that earn more than the others of
their group (group relative policy optimization, arXiv 2402.03300).

    A    = (r - mean of the group's r) / (std of the group's r + 1e-4)
    loss = sum over tokens t of  scale(t) ( loss_type(q(t), A) c(t) + beta KL(t) )  -  entropy_coef mean over t of H(t)

q = p(t) / p_old(t); c corrects for a sampler that isn't p_old. `ft_grpo.losses` has the losses, each with its paper,
and the scales: what a loss is divided by are counts of the whole optimizer step, on all ranks.

A reward of None counts for nothing; a completion that has no other is in no mean, and its advantage is 0. A completion
that is masked has no targets: it is in no loss and in no denominator, but its reward stays in the mean of its group.

While the policy is the one that sampled (one update a rollout), p_old = p: q is 1 and nothing need be computed twice.
Where the loss of a token needs no other token's log-prob (`is_by_token`), the head makes its gradient in the forward
pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ft_grpo.advantages import advantages
from ft_grpo.entropy import controlled
from ft_grpo.losses import DIVISORS, LOSSES, SCALES, Tokens, corrections, highest, kl, off_policy_kept, ratios
from ft_grpo.metrics import metrics
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
    groups_differ,
    hookimpl,
    masked_row,
    maximum,
    mean,
    num_targets,
    policy_values,
    prompt_row,
)

# ---------------------------------------------------------------- hooks: rollouts


@hookimpl
def ft_models(config) -> dict[str, ModelSpec] | None:
    return config.reference_models()


@hookimpl
def ft_prepare(row, tokenizer, config):
    return prompt_row(row, tokenizer, config)


@hookimpl
def ft_rollout(rows, rollout) -> Rollout:
    """The completions of each prompt, with what they earn; with `dynamic_sampling`, of prompts that hold a signal."""
    config, size = rollout.config, rollout.config.num_generations
    completions = rollout.generate(rows, size)
    rewards = rollout.reward(rows, completions)
    samples, compared = rewards.samples(rows), [rewards.totals()]
    if config.multi_objective_aggregation == "normalize_then_sum":  # then each reward is compared separately
        compared = list(zip(*rewards.values, strict=True))
    found: list[dict] = []
    shown: list[dict] = []
    for index, differ in enumerate(groups_differ(compared, size)):
        group = slice(index * size, (index + 1) * size)
        made = [completion_row(rows[index], completion) for completion in completions[group]]
        if config.mask_truncated_completions:
            made = [masked_row(row) if row["truncated"] else row for row in made]
        if config.dynamic_sampling and not (differ and any(map(num_targets, made))):
            continue
        earned = zip(made, rewards.values[group], strict=True)
        found += [row | {"rewards": values, "weights": rewards.weights} for row, values in earned]
        shown += samples[group]
    metrics = rewards.metrics | completion_metrics(completions) | rewards.group_metrics(size, compared)
    return Rollout(rows=found, metrics=metrics, samples=shown)


def log_probs(model: Any, batch: Batch, name: str, temperature: float) -> dict[str, list[torch.Tensor]]:
    return {name: by_row(model(batch, want=("logp",), temperature=temperature)["logp"], batch)}


def compared(earned: list[tuple[int, list[float | None], list[float]]], config: Any) -> list[float]:
    """Return advantages of the completions of all ranks, each given as its group, its rewards and their weights."""
    if not earned:
        return []
    return advantages(
        torch.tensor([[torch.nan if value is None else value for value in values] for _, values, _ in earned]).double(),
        torch.tensor(earned[0][2], dtype=torch.float64),
        torch.tensor([group for group, _, _ in earned]),
        config,
    ).tolist()


@hookimpl
def ft_annotate(rows, run):
    """Once a rollout, before its first update: log-probs of policy and reference where they are needed, and
    advantages."""
    config = run.config
    asked = partial(log_probs, temperature=config.temperature)
    if run.rollouts.updates > 1:
        rows = policy_values(rows, run, partial(asked, name="old_logps"))
    if config.beta:
        rows = annotate(rows, run, "reference", partial(asked, name="ref_logps"))
    earned = [(row["group"], row["rewards"], row["weights"]) for row in rows]
    made = run.over_ranks(earned, partial(compared, config=config))
    return [row | {"advantage": advantage} for row, advantage in zip(rows, made, strict=True)]


# ---------------------------------------------------------------- hooks: statistics of an optimizer step


def entropies(model: Any, batch: Batch, temperature: float) -> dict[str, list[torch.Tensor]]:
    return {"entropies": by_row(model(batch, want=("entropy",), temperature=temperature)["entropy"], batch)}


@hookimpl
def ft_step(rows, run):
    """Entropies of the whole step, of the policy as it is: which tokens are learnt from, and what the bonus weighs."""
    config = run.config
    if config.top_entropy_quantile == 1 and not config.use_adaptive_entropy:
        return None
    rows = policy_values(rows, run, partial(entropies, temperature=config.temperature))

    def chosen(values: list[float]) -> list[bool]:
        every = torch.tensor(values, dtype=torch.float64)
        kept = highest(every, config.top_entropy_quantile)
        if config.use_adaptive_entropy:
            entropy = float(every[kept].mean()) if values else 0.0
            run.state["entropy"] = controlled(run.state.get("entropy"), run.step, entropy, config)
        return kept.tolist()

    flags = iter(run.over_ranks([value for row in rows for value in row["entropies"]], chosen))
    return [row | {"kept": [next(flags) for _ in row["entropies"]]} for row in rows]


OF_TARGETS = ("sampling_logps", "old_logps", "ref_logps", "kept")


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = completion_batch(rows, targets=OF_TARGETS, numbers=("advantage",))
    batch.columns["sizes"] = torch.tensor([num_targets(row) for row in rows], dtype=torch.float32)
    batch.counts["kept"] = sum(sum(row["kept"]) if "kept" in row else num_targets(row) for row in rows)
    return batch


# ---------------------------------------------------------------- hooks: the loss


def tokens_of(
    logps: torch.Tensor, old_logps: torch.Tensor, level: str, batch: Batch, part: slice, config: Any
) -> Tokens:
    """What the losses see of some targets of the batch, from their (n,) log-probs. `level`: of the ratios."""
    rows, sizes = batch.rows[part], batch.columns["sizes"]
    weights = None
    if config.correction != "none":
        weights = corrections(old_logps, batch.columns["sampling_logps"][part], rows, sizes, config)
    return Tokens(
        logps=logps,
        old_logps=old_logps,
        ratios=ratios(logps - old_logps, rows, sizes, level),
        advantages=batch.columns["advantage"][rows],
        rows=rows,
        sizes=sizes,
        corrections=weights,
    )


def policy_losses(tokens: Tokens, batch: Batch, part: slice, config: Any) -> torch.Tensor:
    """The losses of some targets, (n,), without the entropy bonus: what the sum over the step is made of."""
    columns = batch.columns
    values = LOSSES[config.loss_type](tokens, config)
    if config.off_policy_mask_threshold is not None:
        values = values * off_policy_kept(tokens, columns["sampling_logps"][part], config.off_policy_mask_threshold)
    if config.top_entropy_quantile < 1:
        values = values * columns["kept"][part]
    if tokens.corrections is not None and config.loss_type != "vespo":  # which has them in its weight
        values = values * tokens.corrections
    if config.beta:
        values = values + config.beta * kl(tokens, columns["ref_logps"][part], config)
    return values * SCALES[config.loss_type](tokens, config)


def is_by_token(config: Any, on_policy: bool) -> bool:
    """Whether the loss of a token needs no other token's log-prob."""
    if config.entropy_bonus or config.off_policy_mask_threshold is not None or config.correction.startswith("sequence"):
        return False
    if config.importance_sampling_level == "token" and config.loss_type != "vespo":
        return True
    # Where a completion's ratio is 1 and its n tokens weigh the same, ratios of tokens have its value and gradient: the
    # derivative of each token's loss by each log-prob is 1 / n of theirs (GSPO-token, arXiv 2507.18071). And vespo's
    # weight is 1.
    return on_policy and config.correction == "none" and config.top_entropy_quantile == 1 and not config.beta


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, on_policy = run.config, run.rollouts.updates == 1
    by_token = is_by_token(config, on_policy)
    level = "token" if by_token else config.importance_sampling_level

    def seen(logps: torch.Tensor, part: slice) -> Tokens:
        old_logps = logps.detach() if on_policy else batch.columns["old_logps"][part]
        return tokens_of(logps, old_logps, level, batch, part, config)

    def losses(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
        return policy_losses(seen(values["logp"], part), batch, part, config)

    everything = slice(0, len(batch.targets))
    tiled = losses if by_token else None
    out = model(batch, want=("logp", "entropy"), loss=tiled, temperature=config.temperature)
    loss = out["loss"] if by_token else losses(out, everything).sum()
    terms = {DIVISORS[config.loss_type]: loss}
    found = metrics(seen(out["logp"].detach(), everything), out["entropy"].detach(), batch, config)
    if config.entropy_bonus:
        found["policy_loss"] = mean(loss, batch.counts[DIVISORS[config.loss_type]])
        control = run.state["entropy"] if config.use_adaptive_entropy else None
        found["entropy_coef"] = maximum(config.entropy_coef if control is None else control["next"])
        kept = batch.columns["kept"] if config.top_entropy_quantile < 1 else 1.0
        coef = config.entropy_coef if control is None else control["applied"]
        terms["kept"] = -coef * (out["entropy"] * kept).sum()
    return LossOutput(terms=terms, metrics=found)
