"""Odds ratio preference optimization (ORPO), arXiv 2403.07691: fine-tuning and preferences in one run.

    loss = 1/T  sum over tokens of prompt and chosen completion  - log p(token)
           - beta/P  sum over pairs  log sigmoid(x)
    x    = log odds(chosen) - log odds(rejected)         odds(y) = p(y) / (1 - p(y))

p(y) is the geometric mean of the probabilities of the tokens of y. T and P: those tokens and the pairs of the whole
optimizer step. There is no reference: what keeps the policy together is its likelihood of the chosen completions.

A prompt is one segment with two children, so that it is computed once for both completions; its tokens count once.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from ft_host.api import Batch, LossOutput, hookimpl, mean, pair_batch, pair_means, pair_row

# A completion that is certain has infinite odds, as has one without targets: a single token, which nothing predicts
# where there is no prompt. From here on the odds don't grow, and have no gradient.
NEAREST = -1e-6

# ---------------------------------------------------------------- maths


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) of x < 0. Two forms, since each loses its digits where the other has them (Mächler 2012)."""
    return torch.where(x < -math.log(2), torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


def log_odds(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Eq. 7: log odds ratio (P,) of (P,) mean log-probs of a token, in float32."""
    chosen, rejected = chosen.float().clamp(max=NEAREST), rejected.float().clamp(max=NEAREST)
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


# ---------------------------------------------------------------- hooks


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    batch = pair_batch(rows, supervise_prompt=config.nll_on_prompt)
    batch.columns["is_chosen"] = (batch.rows % 2 == 0).float()  # (N,): targets of the prompt belong to the chosen one
    batch.counts["nll_tokens"] = batch.counts["chosen_tokens"] + batch.counts.get("prompt_tokens", 0)
    return batch


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    beta, counts = run.config.beta, batch.counts
    logp = model(batch, want=("logp",))["logp"]
    chosen, rejected = pair_means(logp, batch, "completion")
    odds = log_odds(chosen, rejected)
    ratios = logsigmoid(odds)  # (P,), eq. 6 without its sign
    nll = -(logp * batch.columns["is_chosen"]).sum()
    terms = {"nll_tokens": nll, "pairs": -beta * ratios.sum()}
    by_pair = {
        "log_odds_ratio": ratios,
        "log_odds_chosen": odds,
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "rewards/chosen": beta * chosen,
        "rewards/rejected": beta * rejected,
        "rewards/margins": beta * (chosen - rejected),
        "rewards/accuracies": chosen > rejected,
    }
    metrics = {name: mean(values.detach().sum(), counts["pairs"]) for name, values in by_pair.items()}
    return LossOutput(terms=terms, metrics=metrics | {"nll_loss": mean(nll.detach(), counts["nll_tokens"])})
