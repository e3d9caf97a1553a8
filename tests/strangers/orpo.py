"""ORPO (arXiv 2403.07691): loss = NLL of the prompt and the chosen completion, a mean over their tokens  -  beta / P
sum over pairs  log sigmoid(log odds(chosen) - log odds(rejected)),  odds = p / (1 - p) with p the exponential of a
completion's mean log-prob."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from ft_host.api import LossOutput, RunConfig, hookimpl, option, pair_batch, pair_means, pair_row, pair_sums


@dataclass(kw_only=True)
class Config(RunConfig):
    """ORPO: learn the chosen completion, and make it likelier than the rejected one."""

    beta: float = option(0.1, "Weight of the odds ratio.", gt=0)


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config):
    batch = pair_batch(rows, supervise_prompt=True)
    batch.counts["learnt"] = batch.counts["prompt_tokens"] + batch.counts["chosen_tokens"]
    return batch


def log_odds(logps: torch.Tensor) -> torch.Tensor:
    return logps - torch.log1p(-torch.exp(logps))


@hookimpl
def ft_loss(model, batch, run):
    logp = model(batch, want=("logp",))["logp"]
    learnt, _ = pair_sums(logp, batch)  # the prompt's targets are the chosen completion's
    chosen, rejected = pair_means(logp, batch, "completion")
    odds = logsigmoid(log_odds(chosen) - log_odds(rejected))
    return LossOutput(terms={"learnt": -learnt.sum(), "pairs": -run.config.beta * odds.sum()})
