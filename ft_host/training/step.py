"""One optimizer step, and the loss of an evaluation: micro-batches, counts that ranks agree on, loss, one update.

An optimizer step is a set of rows. How they are split into micro-batches and spread over ranks changes memory and
speed, never the gradient: a loss is a sum over rows divided by counts of the whole step (`run.totals`), which all ranks
agree on before the first forward.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ft_host.contract.names import Named
from ft_host.data.micro_batches import split_micro_batches
from ft_host.metrics import Accumulator, add_counts, combine, maximum, total
from ft_host.models.experts import ExpertLoad, load_metrics
from ft_host.monitor.memory_usage import PEAK, memory_metrics
from ft_host.types import Row
from ft_host.util.memory import BACKWARD, FORWARD, UPDATE, oom_context

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer

    from ft_host.batch import Batch
    from ft_host.monitor.gradients import UpdateMonitor
    from ft_host.monitor.ranks import RankTimes
    from ft_host.run import Run


def asks_models(run: Run) -> bool:
    """Return whether the method runs a model on rows before they are collated."""
    hook = run.plugins.hook
    annotates = run.rollouts is None and hook.ft_annotate.get_hookimpls()
    return bool(annotates or hook.ft_step.get_hookimpls())


def before_collating(run: Run, cuts: list[list[Row]]) -> list[list[Row]]:
    """Return the rows of a step's micro-batches, annotated (those of a rollout are already) and with the statistics of
    the step."""
    rows = [row for each in cuts for row in each]
    if run.rollouts is None:
        rows = run.annotate(rows)
    rows = run.add_step_statistics(rows)
    ends = list(itertools.accumulate(len(each) for each in cuts))
    return [rows[end - len(each) : end] for each, end in zip(cuts, ends, strict=True)]


# ---------------------------------------------------------------- one micro-batch, one step


def loss_of(run: Run, batch: Batch, tokens: int, accumulator: Accumulator) -> torch.Tensor:
    """Return the loss of one micro-batch as it enters the step's sum; its metrics go into `accumulator`."""
    with run.accelerator.autocast():
        output = run.loss(batch.to(run.device))
    loss = output.loss
    accumulator.add(output.metrics)
    accumulator.add({"loss": total(output.loss)})
    aux = run.policy.aux_loss
    if aux is not None:
        # A mean over the tokens of a micro-batch: weighted by its share of the step's tokens. It is not a sum over
        # rows (the product of two means), so it does depend on the split; so does everybody's.
        share = batch.num_tokens / tokens
        accumulator.add({"aux_loss": total(aux * share)})
        if run.model.training:
            loss = loss + run.policy.router_aux_loss_coef * share * aux
    return loss


@dataclass
class Agreed:
    """What all ranks know of a step before its first forward."""

    totals: dict[str, float]
    tokens: int  # in all micro-batches of all ranks; a shared prompt counts once for each that shares it
    micro_batches: int  # of the rank that has most: the others add empty ones, since collectives must pair up
    interrupted: str | None  # why: "signal", or what a rule has found


def agree(run: Run, batches: list[Batch], interrupted: str | None = None) -> Agreed:
    """One exchange between ranks: counts, number of micro-batches, and whether any rank must stop. Raises the error of
    a rank that has failed."""
    ranks = run.gather(
        (add_counts(b.counts for b in batches), sum(b.num_tokens for b in batches), len(batches), interrupted)
    )
    return Agreed(
        totals=Named("run.totals", add_counts(rank[0] for rank in ranks)),
        tokens=sum(rank[1] for rank in ranks),
        micro_batches=max(rank[2] for rank in ranks),
        interrupted=next((rank[3] for rank in ranks if rank[3]), None),
    )


def sync_only_last(run: Run, last: bool) -> contextlib.AbstractContextManager:
    """DDP reduces gradients in the last backward of a step only. FSDP2 keeps its shards small by reducing in each."""
    if last or run.world_size == 1 or run.config.distributed_strategy == "fsdp2":
        return contextlib.nullcontext()
    return run.accelerator.no_sync(run.model)


def clip(run: Run, optimizer: torch.optim.Optimizer) -> float:
    """Scale the gradients down to `max_grad_norm`; returns their norm before that."""
    trained = [p for p in run.model.parameters() if p.requires_grad]
    limit = run.config.max_grad_norm or math.inf
    norm = run.accelerator.clip_grad_norm_(trained, limit)
    if isinstance(norm, torch.distributed.tensor.DTensor):
        norm = norm.full_tensor()
    return float(norm)


def train_step(
    run: Run,
    batches: list[Batch],
    agreed: Agreed,
    optimizer: AcceleratedOptimizer,
    monitor: UpdateMonitor,
    times: RankTimes,
    data_time: float = 0.0,
) -> dict[str, float]:
    """Run forward and backward of every micro-batch, then one update. Returns the step's metrics over all ranks;
    `data_time`, the seconds that this rank waited for its rows, is one of them, and what `times` has compared.

    Raises FtHostError before the update if loss or gradient is not finite, so that the weights stay what they were.
    """
    run.totals = agreed.totals
    accumulator, load = Accumulator(), ExpertLoad()
    batches = batches + [run.collate([]) for _ in range(agreed.micro_batches - len(batches))]
    times.begin()
    for index, batch in enumerate(batches):
        with sync_only_last(run, index == len(batches) - 1):
            with oom_context(FORWARD, run.step + 1):
                loss = loss_of(run, batch, agreed.tokens, accumulator)
            PEAK.look()  # what the backward pass needs is there
            load.add(run.policy.routing)
            run.policy.routing = None
            if index == len(batches) - 1:
                times.end()  # the ranks wait for each other in the last backward pass
            with oom_context(BACKWARD, run.step + 1):
                # DDP and FSDP2 average gradients over ranks; the loss is a sum over them.
                run.accelerator.backward(loss * run.world_size)
    norm = clip(run, optimizer)
    accumulator.add({"perf/data_time": maximum(data_time)} | memory_metrics(run))
    ranks = run.gather((accumulator.local(), load.local(), times.own(sum(batch.num_tokens for batch in batches))))
    metrics = combine([rank[0] for rank in ranks]) | load_metrics([rank[1] for rank in ranks])
    metrics |= times.compared([rank[2] for rank in ranks])
    metrics["grad_norm"] = norm
    if "aux_loss" in metrics:
        balance = run.policy.router_aux_loss_coef * metrics["aux_loss"]
        metrics["moe/aux_share"] = balance / (abs(metrics["loss"]) + balance)
    monitor.before_update(run, metrics["loss"], norm, float(optimizer.param_groups[0]["lr"]))
    run.whole = False
    with oom_context(UPDATE, run.step + 1), times.updating():
        optimizer.step()
    metrics |= monitor.after_update(run)
    if run.accelerator.scaler is not None:
        metrics["update_skipped"] = float(optimizer.step_was_skipped)
    optimizer.zero_grad(set_to_none=True)
    return metrics


def evaluate_loss(run: Run, mine: list[Row]) -> dict[str, float]:
    """Return loss and metrics over the evaluation rows as `eval_*`. `mine` are this rank's rows, annotated. The result
    doesn't depend on the batch size or the ranks."""
    was_training = run.model.training
    run.model.eval()  # which is how `ft_step` tells held-out rows from those that are trained on
    mine = run.add_step_statistics(mine)
    order = sorted(range(len(mine)), key=lambda i: mine[i]["length"])
    cuts = split_micro_batches([[mine[i]] for i in order], run.config.per_device_eval_batch_size, None)
    batches = [run.collate(rows) for rows in cuts]  # on the CPU; a batch goes to the device when its turn comes
    agreed = agree(run, batches)
    batches += [run.collate([]) for _ in range(agreed.micro_batches - len(batches))]
    run.totals = agreed.totals
    accumulator = Accumulator()
    with torch.no_grad():
        for batch in batches:
            loss_of(run, batch, agreed.tokens, accumulator)
    run.model.train(was_training)
    metrics = combine(run.gather(accumulator.local()))
    return {f"eval_{name}": value for name, value in metrics.items()}
