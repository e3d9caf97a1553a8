"""Reward modelling: a score r for a prompt with its completion, from pairs of which one is preferred.

    loss = 1/N  sum over pairs  [ -log sigmoid(r_chosen - r_rejected - m)  +  c (r_chosen + r_rejected)^2 ]

N: pairs of the whole optimizer step, on all ranks. The first term is that of Bradley and Terry, arXiv 2203.02155, eq.
1, with m, how far apart two completions are meant to be, from arXiv 2307.09288, eq. 2: 0 in a row that names none. The
second, with c = `center_rewards_coefficient`, is of arXiv 2312.09244, eq. 2: it settles on 0 what a constant added to
all scores would leave open.

The score is read at the last token that isn't padding, as transformers' sequence classifiers read it. What both texts
of a pair begin with is one segment with two children, so it is computed once. Row 2i of a batch is pair i's chosen
text, row 2i + 1 its rejected one.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ft_host.api import (
    IGNORE,
    Batch,
    LossOutput,
    ModelSpec,
    Segment,
    flat_batch,
    hookimpl,
    maximum,
    mean,
    minimum,
    pair_row,
    score_pad,
)

NAMES = ("chosen", "rejected")

# ---------------------------------------------------------------- maths


def bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each preference, (P,), from the scores and margins of pairs, (P,) each."""
    return -F.logsigmoid(chosen - rejected - margins)


def off_centre(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return (P,) squares of the sums of two scores, (P,) each."""
    return (chosen + rejected).square()


def shared_length(chosen: list[int], rejected: list[int], pad: int) -> int:
    """Return the number of tokens that two texts share at their start, before the tokens where their scores
    are read.
    """
    most = min(score_place(chosen, pad), score_place(rejected, pad))
    return next((at for at in range(most) if chosen[at] != rejected[at]), most)


def score_place(ids: list[int], pad: int) -> int:
    """Return the index of the last token that isn't padding; 0 where all are."""
    return next((at for at in range(len(ids) - 1, 0, -1) if ids[at] != pad), 0)


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_models(config):
    return {"policy": ModelSpec(head="reward")}


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    pad = score_pad(tokenizer)
    segments: list[Segment] = []
    for pair, row in enumerate(rows):
        chosen, rejected = (row["prompt_ids"] + row[f"{name}_ids"] for name in NAMES)
        shared, parent = shared_length(chosen, rejected, pad), None
        if shared:
            parent = len(segments)
            segments.append(Segment(input_ids=chosen[:shared], labels=[IGNORE] * shared, row=2 * pair))
        for offset, ids in enumerate((chosen[shared:], rejected[shared:])):
            segments.append(Segment(input_ids=ids, labels=[IGNORE] * len(ids), row=2 * pair + offset, parent=parent))
    margins = torch.tensor([row.get("margin", 0.0) for row in rows])
    return flat_batch(
        segments, num_rows=2 * len(rows), columns={"margins": margins}, counts={"pairs": len(rows)}, pad_token_id=pad
    )


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    scores = model(batch, want=("score",))["score"]
    chosen, rejected = scores.view(-1, 2).unbind(1)
    losses = bradley_terry(chosen, rejected, batch.columns["margins"])
    if run.config.center_rewards_coefficient is not None:
        losses = losses + run.config.center_rewards_coefficient * off_centre(chosen, rejected)
    return LossOutput(terms={"pairs": losses.sum()}, metrics=metrics(scores.detach(), batch.counts["pairs"]))


def metrics(scores: torch.Tensor, pairs: float) -> dict:
    """Return metrics of (2P,) scores, in the order of a batch's rows. A rank without rows has no minimum."""
    chosen, rejected = scores.view(-1, 2).unbind(1)
    out = {
        "accuracy": mean((chosen > rejected).sum(), pairs),
        "margin": mean((chosen - rejected).sum(), pairs),
        "mean_reward": mean(scores.sum(), 2 * pairs),
    }
    return out | ({"min_reward": minimum(scores.min()), "max_reward": maximum(scores.max())} if pairs else {})
