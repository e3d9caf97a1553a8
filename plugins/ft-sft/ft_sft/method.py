"""Supervised fine-tuning (SFT): minimise the negative log-likelihood of the supervised tokens.

    loss = - 1/N  sum_i  sg[w(p_i)] log p_i          N: supervised tokens of the whole optimizer step, on all ranks

`nll` has w = 1. `dft` (Dynamic Fine-Tuning, arXiv 2508.05629, eq. 9) has w = p: it cancels the 1/p in the gradient
that makes unlikely tokens dominate. Which tokens are supervised is decided in `ft_prepare`.

With `label_smoothing_factor` e a label is 1 - e on its token and e spread over the vocabulary of V tokens, as in
transformers' LabelSmoother:  (1 - e) (- log p_i)  +  e (- 1/V sum_v log p_v).
"""

from __future__ import annotations

import torch

from ft_host.api import Batch, Drop, LossOutput, Segment, count_targets, flat_batch, hookimpl, mean, tokenize_row

# ---------------------------------------------------------------- maths


def nll(logp: torch.Tensor) -> torch.Tensor:
    """- log p: every token counts the same. (n,) log-probs to (n,) losses."""
    return -logp


def dft(logp: torch.Tensor) -> torch.Tensor:
    """- sg[p] log p: a token counts in proportion to its current probability. (n,) log-probs to (n,) losses."""
    return -logp.exp().detach() * logp


def smoothed(logp: torch.Tensor, mean_logp: torch.Tensor, factor: float) -> torch.Tensor:
    """- (1 - e) log p - e mean_v log p_v: the cross-entropy of a smoothed label (arXiv 1512.00567, section 7). (n,)
    log-probs of the label and means of those of the vocabulary, to (n,) losses.
    """
    return -(1 - factor) * logp - factor * mean_logp


LOSSES = {"nll": nll, "dft": dft}


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_prepare(row, tokenizer, config):
    tokens = tokenize_row(
        row,
        tokenizer,
        config,
        completion_only=config.completion_only_loss,
        assistant_only=config.assistant_only_loss,
        text_field=config.dataset_text_field,
    )
    if not count_targets(tokens["labels"]):
        return Drop("no supervised token" + tokens["unsupervised"])
    return tokens


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    segments = [Segment(input_ids=row["input_ids"], labels=row["labels"], row=index) for index, row in enumerate(rows)]
    tokens = sum(count_targets(row["labels"]) for row in rows)
    return flat_batch(segments, num_rows=len(rows), counts={"tokens": tokens})


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    loss, factor = LOSSES[run.config.loss_type], run.config.label_smoothing_factor

    def losses(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
        return smoothed(values["logp"], values["mean_logp"], factor) if factor else loss(values["logp"])

    out = model(batch, want=("entropy", "top1", *(("mean_logp",) if factor else ())), loss=losses)
    targets = batch.counts["tokens"]
    return LossOutput(
        terms={"tokens": out["loss"]},
        metrics={
            "entropy": mean(out["entropy"].sum(), targets),
            "mean_token_accuracy": mean(out["top1"].sum(), targets),
        },
    )
