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
    Batch,
    ConfigError,
    FtHostError,
    LossOutput,
    annotate,
    hookimpl,
    load_function,
    mean,
    pair_batch,
    pair_row,
    pair_sums,
    policy_values,
)

NAMES = ("chosen", "rejected")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
MATCHED = ("matched_reference", "matched_rejected", "matched_chosen")

# ---------------------------------------------------------------- maths


def log_prob_sums(logp: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of chosen and rejected completions, (P,) each; LD-DPO's weighted sums with `ld_alpha`."""
    return pair_sums(logp * batch.columns["ld_weights"] if "ld_weights" in batch.columns else logp, batch)


def on_policy_weights(logp: torch.Tensor, log_sum_sq_probs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """WPO, arXiv 2406.11827, eq. 2, with its alignment to sampled tokens: (P,) weights, without gradient.

    Of a completion  exp(mean over tokens of log p(token) - log sum_v p(v)^2):  its likelihood beside what sampling
    from the policy would give on average. A pair has the product of its two.
    """
    aligned = logp.detach() - log_sum_sq_probs
    lengths = pair_sums(torch.ones_like(aligned), batch)
    chosen, rejected = (
        torch.exp(total / length.clamp(min=1)) for total, length in zip(pair_sums(aligned, batch), lengths, strict=True)
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
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = pair_batch(rows, columns=(*REFERENCE, *MATCHED))
    for name in NAMES:
        batch.columns[f"{name}_lengths"] = torch.tensor([float(len(row[f"{name}_ids"])) for row in rows])
    if config.ld_alpha is not None:
        batch.columns["ld_weights"] = torch.tensor(length_weights(rows, config.ld_alpha))
    return batch


def length_weights(rows: list[dict], alpha: float) -> list[float]:
    """LD-DPO's weight of each target, in the order of the batch: 1, and `alpha` beyond the length of the shorter
    completion."""
    weights: list[float] = []
    for row in rows:
        unseen = 0 if row["prompt_ids"] else 1  # without a prompt nothing predicts the first token
        sizes = [len(row[f"{name}_ids"]) - unseen for name in NAMES]
        for size in sizes:
            weights += [1.0] * min(sizes) + [alpha] * (size - min(sizes))
    return weights


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
        chosen_nll=-pair_sums(logp, batch)[0],
        **{name: batch.columns[name] for name in MATCHED if name in batch.columns},
    )


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config = run.config
    more = ("log_sum_sq_probs",) if config.use_weighting else ()
    out = model(batch, want=("logp", "entropy", "top1", "mean_logit", *more))
    pairs = pairs_of(out["logp"], batch, config)
    weights = on_policy_weights(out["logp"], out["log_sum_sq_probs"], batch) if config.use_weighting else 1.0
    terms: dict[str, torch.Tensor] = {}
    for name, share in zip(config.loss_type, config.loss_weights or [1.0] * len(config.loss_type), strict=True):
        values = loss_function(name)(pairs, config)
        if values.shape != pairs.chosen_logps.shape:
            raise FtHostError(
                f"loss_type: {name} gave a tensor of shape {tuple(values.shape)}, expected one value for each of the "
                f"{batch.num_rows // 2} pairs"
            )
        count = DIVISORS.get(name, "pairs")
        terms[count] = terms.get(count, 0.0) + share * (weights * values).sum()
    return LossOutput(terms=terms, metrics=metrics(out, pairs, batch, config.beta))


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
        "entropy": mean(out["entropy"].detach().sum(), counts["tokens"]),
        "mean_token_accuracy": mean((out["top1"] * is_chosen).sum(), counts["chosen_tokens"]),
        "logits/chosen": mean((out["mean_logit"] * is_chosen).sum(), counts["chosen_tokens"]),
        "logits/rejected": mean((out["mean_logit"] * ~is_chosen).sum(), counts["rejected_tokens"]),
        **{name: mean(values.detach().sum(), counts["pairs"]) for name, values in by_pair.items()},
    }
