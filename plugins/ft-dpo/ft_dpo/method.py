"""Direct Preference Optimization (DPO), arXiv 2305.18290: make chosen completions likelier than rejected ones.

    loss = sum over losses k of  weight_k / N  sum over pairs  w loss_k(pair)      N: pairs of the whole optimizer step

`ft_dpo.losses` has the losses, each with its paper, and says what they see of a pair: the log-probs of its completions
under the policy and under a frozen reference. w is 1, or WPO's weight. `sft` is divided by the step's chosen tokens.

A prompt is one segment with two children, so it is computed once for both completions. Row 2i of a batch is pair i's
chosen completion, row 2i + 1 its rejected one.
"""

from __future__ import annotations

import functools
import inspect

import torch

from ft_dpo.config import SORTED
from ft_dpo.losses import DIVERGENCES, DIVISORS, LOSSES, Loss, Pairs, matches
from ft_host.api import (
    IGNORE,
    Batch,
    ConfigError,
    Drop,
    FtHostError,
    LossOutput,
    Segment,
    annotate,
    fit_length,
    flat_batch,
    hookimpl,
    is_empty,
    load_function,
    mean,
    policy_values,
    preference_row,
    tokenize_completions,
)

NAMES = ("chosen", "rejected")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
MATCHED = ("matched_reference", "matched_rejected", "matched_chosen")

# ---------------------------------------------------------------- maths


def row_sums(values: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) values of targets, added up for each completion: (P,) of chosen, (P,) of rejected."""
    sums = values.new_zeros(batch.num_rows).index_add(0, batch.rows, values)
    chosen, rejected = sums.view(batch.num_rows // 2, 2).unbind(1)
    return chosen, rejected


def log_prob_sums(logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of chosen and rejected completions, (P,) each; LD-DPO's weighted sums with `ld_alpha`."""
    return row_sums(logp * batch.columns["ld_weights"] if "ld_weights" in batch.columns else logp, batch)


def on_policy_weights(logp: torch.Tensor, log_sum_sq_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """WPO, arXiv 2406.11827, eq. 2, with its alignment to sampled tokens: (P,) weights, without gradient.

    Of a completion  exp(mean over tokens of log p(token) - log sum_v p(v)^2):  its likelihood beside what sampling
    from the policy would give on average. A pair has the product of its two.
    """
    aligned = logp.detach() - log_sum_sq_probs
    lengths = row_sums(torch.ones_like(aligned), batch)
    chosen, rejected = (
        torch.exp(total / length.clamp(min=1)) for total, length in zip(row_sums(aligned, batch), lengths, strict=True)
    )
    return chosen * rejected


@functools.cache
def loss_function(name: str) -> Loss:
    """A loss of the table, or the user's own, imported. Raises ConfigError, naming what can't be found or called."""
    if name in LOSSES:
        return LOSSES[name]
    function = load_function(name, "loss_type")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"loss_type: {name} can't be called with (pairs, config): {error}") from error
    return function


# ---------------------------------------------------------------- data


@hookimpl
def ft_prepare(row, tokenizer, config):
    found = preference_row(row, tokenizer)
    if any(is_empty(found[name]) for name in (("chosen_ids", "rejected_ids") if "chosen_ids" in found else NAMES)):
        return Drop("empty completion")
    prompt, (chosen, rejected) = tokenize_completions(found, tokenizer, NAMES)
    if chosen == rejected:
        return Drop("chosen and rejected are the same")
    fitted = fit_length(prompt, [chosen, rejected], config)
    if isinstance(fitted, Drop):
        return fitted
    prompt, (chosen, rejected), cut = fitted
    if chosen == rejected:
        return Drop("chosen and rejected are the same within max_length")
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "length": len(prompt) + len(chosen) + len(rejected),
        "truncated": bool(cut),
        "cut": {part if part == "prompt" else NAMES[part]: tokens for part, tokens in cut.items()},
        "implicit_prompt": found["implicit_prompt"],
    }


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    segments: list[Segment] = []
    targets = dict.fromkeys(NAMES, 0)
    ld_weights: list[float] = []
    for pair, row in enumerate(rows):
        prompt, parent = row["prompt_ids"], None
        if prompt:
            parent = len(segments)
            segments.append(Segment(input_ids=prompt, labels=[IGNORE] * len(prompt), row=2 * pair))
        unseen = 0 if prompt else 1  # without a prompt nothing predicts the first token
        shared = min(len(row["chosen_ids"]), len(row["rejected_ids"])) - unseen
        for offset, name in enumerate(NAMES):
            ids = row[f"{name}_ids"]
            segments.append(Segment(input_ids=ids, labels=ids, row=2 * pair + offset, parent=parent))
            size = len(ids) - unseen
            targets[name] += size
            if config.ld_alpha is not None:
                ld_weights += [1.0] * shared + [config.ld_alpha] * (size - shared)
    columns = {name: torch.tensor([float(len(row[f"{name}_ids"])) for row in rows]) for name in NAMES}
    columns = {f"{name}_lengths": lengths for name, lengths in columns.items()}
    if config.ld_alpha is not None:
        columns["ld_weights"] = torch.tensor(ld_weights)
    for name in (*REFERENCE, *MATCHED):
        if all(name in row for row in rows):  # not yet while they are being made
            columns[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
    counts = {
        "pairs": len(rows),
        "tokens": sum(targets.values()),
        "chosen_tokens": targets["chosen"],
        "rejected_tokens": targets["rejected"],
    }
    return flat_batch(segments, num_rows=2 * len(rows), columns=columns, counts=counts)


# ---------------------------------------------------------------- the reference, and statistics of the step


@hookimpl
def ft_models(config):
    for name in config.loss_type:
        loss_function(name)  # so that what can't be imported is refused before anything is loaded
    return config.reference_models("rows" if config.reference_ahead else None)


def reference_log_probs(model, batch: Batch) -> dict[str, torch.Tensor]:
    chosen, rejected = log_prob_sums(model(batch, want=("logp",))["logp"], batch)
    return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


@hookimpl
def ft_annotate(rows, run):
    if run.config.reference_free:
        return [row | dict.fromkeys(REFERENCE, 0.0) for row in rows]
    identity = ("prompt_ids", "chosen_ids", "rejected_ids")
    key = f"ld_alpha={run.config.ld_alpha}"
    return annotate(rows, run, "reference", reference_log_probs, identity=identity, key=key)


def policy_log_probs(model, batch: Batch) -> dict[str, torch.Tensor]:
    chosen, rejected = log_prob_sums(model(batch, want=("logp",))["logp"], batch)
    return {"chosen_logps": chosen, "rejected_logps": rejected}


@hookimpl
def ft_step(rows, run):
    """Match the pairs of the whole step where a loss sorts them: a sort of each micro-batch would be another loss.

    The order is that of the policy without dropout; in training with dropout the values that are then compared differ
    from it by that noise.
    """
    if not set(run.config.loss_type) & set(SORTED):
        return None
    names = ("chosen_logps", "rejected_logps", *REFERENCE)
    mine = [tuple(row[name] for name in names) for row in policy_values(rows, run, policy_log_probs)]
    return [row | partners for row, partners in zip(rows, run.over_ranks(mine, matches), strict=True)]


# ---------------------------------------------------------------- loss


def pairs_of(logp: torch.Tensor, batch: Batch, config) -> Pairs:
    """What the losses see, from (N,) log-probs of targets."""
    chosen, rejected = log_prob_sums(logp, batch)
    ref_chosen, ref_rejected = (batch.columns[name] for name in REFERENCE)
    divergence, alpha = DIVERGENCES[config.f_divergence_type], config.f_alpha_divergence_coef
    return Pairs(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        chosen_scores=divergence(chosen - ref_chosen, alpha),
        rejected_scores=divergence(rejected - ref_rejected, alpha),
        chosen_lengths=batch.columns["chosen_lengths"],
        rejected_lengths=batch.columns["rejected_lengths"],
        chosen_nll=-row_sums(logp, batch)[0],
        **{name: batch.columns[name] for name in MATCHED if name in batch.columns},
    )


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config = run.config
    more = ("log_sum_sq_probs",) if config.use_weighting else ()
    out = model(batch, want=("logp", "entropy", "top1", "mean_logit", *more))
    pairs = pairs_of(out["logp"], batch, config)
    weights = on_policy_weights(out["logp"], out["log_sum_sq_probs"], batch) if config.use_weighting else 1.0
    loss = 0.0
    for name, share in zip(config.loss_type, config.loss_weights or [1.0] * len(config.loss_type), strict=True):
        values = loss_function(name)(pairs, config)
        if values.shape != pairs.chosen_logps.shape:
            raise FtHostError(
                f"loss_type: {name} gave a tensor of shape {tuple(values.shape)}, expected one value for each of the "
                f"{batch.num_rows // 2} pairs"
            )
        loss = loss + share * (weights * values).sum() / run.totals[DIVISORS.get(name, "pairs")]
    return LossOutput(loss=loss, metrics=metrics(out, pairs, batch, config.beta))


def metrics(out: dict[str, torch.Tensor], pairs: Pairs, batch: Batch, beta: float) -> dict:
    """Means over tokens or pairs. A reward is beta times the log-ratio, whatever the divergence and the loss."""
    counts, is_chosen = batch.counts, batch.rows % 2 == 0
    chosen, rejected = beta * pairs.chosen_logratios.detach(), beta * pairs.rejected_logratios.detach()
    by_pair = {
        "logps/chosen": pairs.chosen_logps,
        "logps/rejected": pairs.rejected_logps,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": chosen > rejected,
    }
    return {
        "entropy": mean(out["entropy"].sum(), counts["tokens"]),
        "mean_token_accuracy": mean((out["top1"] * is_chosen).sum(), counts["chosen_tokens"]),
        "logits/chosen": mean((out["mean_logit"] * is_chosen).sum(), counts["chosen_tokens"]),
        "logits/rejected": mean((out["mean_logit"] * ~is_chosen).sum(), counts["rejected_tokens"]),
        **{name: mean(values.sum(), counts["pairs"]) for name, values in by_pair.items()},
    }
