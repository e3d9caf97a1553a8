"""Simple preference optimization (SimPO, arXiv 2405.14734) and contrastive preference optimization (CPO, arXiv
2401.08417): make chosen completions likelier than rejected ones, without a reference.

    loss = 1/P  sum over pairs  l(c, r)  +  cpo_alpha/T  sum over tokens of chosen completions  - log p(token)

c, r: log-probs of the chosen and the rejected completion, means over tokens for simpo and ipo, sums for sigmoid (CPO's)
and hinge. P and T: pairs and chosen tokens of the whole optimizer step. With `alpha`, (1 - e^(-alpha c)) / alpha stands
in the place of c (AlphaPO, arXiv 2501.03884).

A prompt is one segment with two children, so that it is computed once for both completions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid, relu

from ft_host.api import Batch, LossOutput, hookimpl, mean, pair_batch, pair_means, pair_row, pair_sums
from ft_simpo.config import MEANS, SimPOConfig

LARGEST = 80.0  # exp of more than 88 overflows float32, and inf - inf would make all weights nan

# ---------------------------------------------------------------- maths


def shaped(logps: torch.Tensor, alpha: float) -> torch.Tensor:
    """AlphaPO, eq. 5: (P,) rewards over beta of (P,) log-probs; the log-probs themselves for alpha 0."""
    if alpha == 0:
        return logps
    return (1 - torch.exp((-alpha * logps).clamp(max=LARGEST))) / alpha


def smoothed(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    """- log sigma, of labels of which a share is taken to be swapped."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def simpo(margins: torch.Tensor, config: SimPOConfig) -> torch.Tensor:
    """SimPO, eq. 6:  - log sigma(beta (c - r) - gamma), of means per token."""
    return smoothed(config.beta * margins - config.simpo_gamma, config.label_smoothing)


def sigmoid(margins: torch.Tensor, config: SimPOConfig) -> torch.Tensor:
    """CPO, eq. 3:  - log sigma(beta (c - r)), of sums."""
    return smoothed(config.beta * margins, config.label_smoothing)


def hinge(margins: torch.Tensor, config: SimPOConfig) -> torch.Tensor:
    """SLiC's hinge, arXiv 2305.10425:  max(0, 1 - beta (c - r)), of sums."""
    return relu(1 - config.beta * margins)


def ipo(margins: torch.Tensor, config: SimPOConfig) -> torch.Tensor:
    """IPO, arXiv 2310.12036, eq. 17, without its reference:  (c - r - 1 / (2 beta))^2, of means per token."""
    return (margins - 1 / (2 * config.beta)) ** 2


# From (P,) differences c - r to (P,) losses.
LOSSES: dict[str, Callable[[torch.Tensor, SimPOConfig], torch.Tensor]] = {
    "simpo": simpo,
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
}

# ---------------------------------------------------------------- hooks


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config) -> Batch:
    return pair_batch(rows)


@hookimpl
def ft_loss(model, batch, run) -> LossOutput:
    config, counts = run.config, batch.counts
    logp = model(batch, want=("logp",))["logp"]
    chosen, rejected = pair_means(logp, batch) if config.loss_type in MEANS else pair_sums(logp, batch)
    chosen_rewards, rejected_rewards = (shaped(logps, config.alpha) for logps in (chosen, rejected))
    nll = -pair_sums(logp, batch)[0].sum()
    terms = {"pairs": LOSSES[config.loss_type](chosen_rewards - rejected_rewards, config).sum()}
    if config.cpo_alpha:
        terms["chosen_tokens"] = config.cpo_alpha * nll
    by_pair = {
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "rewards/chosen": config.beta * chosen_rewards,
        "rewards/rejected": config.beta * rejected_rewards,
        "rewards/margins": config.beta * (chosen_rewards - rejected_rewards),
        "rewards/accuracies": chosen_rewards > rejected_rewards,
    }
    metrics = {name: mean(values.detach().sum(), counts["pairs"]) for name, values in by_pair.items()}
    return LossOutput(terms=terms, metrics=metrics | {"nll_loss": mean(nll.detach(), counts["chosen_tokens"])})
