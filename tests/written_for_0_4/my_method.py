"""Length-normalised SFT:  loss = 1/R  sum_r  n_r^-a  sum_(i in r) -log p_i  over the R rows of the optimizer step, with
n_r supervised tokens in row r. a = 1 gives each row the same weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ft_host import hookimpl
from ft_host.batch import Segment, count_targets, forest
from ft_host.config import RunConfig, option
from ft_host.data import tokenize_row
from ft_host.metrics import mean
from ft_host.run import Drop, LossOutput


@dataclass(kw_only=True)
class Config(RunConfig):
    """Length-normalised supervised fine-tuning."""

    length_power: float = option(1.0, "A row's loss is divided by its supervised tokens to this power.", ge=0, le=1)


def row_weights(sizes: torch.Tensor, power: float) -> torch.Tensor:
    """(R,) supervised tokens of each row to (R,) weights of its tokens."""
    return sizes**-power


@hookimpl
def ft_prepare(row, tokenizer, config):
    tokens = tokenize_row(row, tokenizer, config, completion_only=None, assistant_only=False)
    return tokens if count_targets(tokens["labels"]) else Drop("no supervised token")


@hookimpl
def ft_collate(rows, tokenizer, config):
    segments = [Segment(input_ids=row["input_ids"], labels=row["labels"], row=i) for i, row in enumerate(rows)]
    sizes = [count_targets(row["labels"]) for row in rows]
    columns = {"sizes": torch.tensor(sizes, dtype=torch.float32)}
    return forest(segments, num_rows=len(rows), columns=columns, counts={"rows": len(rows), "tokens": sum(sizes)})


@hookimpl
def ft_loss(model, batch, run):
    out = model(batch, want=("logp", "top1"))
    weights = row_weights(batch.columns["sizes"], run.config.length_power)[batch.rows]  # (N,)
    return LossOutput(
        loss=-(weights * out["logp"]).sum() / run.totals["rows"],
        metrics={"mean_token_accuracy": mean(out["top1"].sum(), batch.counts["tokens"])},
    )
