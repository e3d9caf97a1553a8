"""SimPO (arXiv 2405.14734): loss = 1/P sum over pairs  -log sigmoid(beta (mean log p(chosen) - mean log p(rejected)) -
gamma), with means over the tokens of a completion and P pairs in the optimizer step. There is no reference."""

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from ft_host.api import LossOutput, RunConfig, hookimpl, mean, option, pair_batch, pair_means, pair_row


@dataclass(kw_only=True)
class Config(RunConfig):
    """SimPO: make chosen completions likelier than rejected ones, by their mean log-prob."""

    beta: float = option(2.0, "How much a difference of mean log-probs counts.", gt=0)
    gamma: float = option(1.0, "The margin that a chosen completion should have.", ge=0)


@hookimpl
def ft_prepare(row, tokenizer, config):
    return pair_row(row, tokenizer, config)


@hookimpl
def ft_collate(rows, tokenizer, config):
    return pair_batch(rows)


@hookimpl
def ft_loss(model, batch, run):
    chosen, rejected = pair_means(model(batch, want=("logp",))["logp"], batch)
    losses = -logsigmoid(run.config.beta * (chosen - rejected) - run.config.gamma)
    accuracy = mean((chosen > rejected).sum(), batch.counts["pairs"])
    return LossOutput(terms={"pairs": losses.sum()}, metrics={"rewards/accuracies": accuracy})
