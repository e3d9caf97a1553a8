"""The one training loop. Every method runs through it: rows, micro-batches, loss, one optimizer step, metrics.

An optimizer step is a set of rows. How they are cut into micro-batches and spread over ranks changes memory and
speed, never the gradient: a loss is a sum over rows divided by counts of the whole step (`run.totals`), which all
ranks agree on before the first forward.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ft_host.data.micro_batches import split_micro_batches
from ft_host.errors import FtHostError, Interrupted, OutOfMemory, StoppedByFinding, UsageError
from ft_host.metrics import Accumulator, add_counts, combine, maximum, total
from ft_host.models.experts import ExpertLoad, load_metrics
from ft_host.monitor.gradients import GradientCoverage, snapshot_weights, update_ratio
from ft_host.monitor.memory_usage import memory_metrics, peak_memory_mb
from ft_host.training.normalisation import check_normalised
from ft_host.types import Row
from ft_host.util.memory import BACKWARD, FORWARD, UPDATE, oom_context

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.data.stream import StepRows
    from ft_host.run import Run
    from ft_host.training.optim import Schedule


def asks_models(run: Run) -> bool:
    """Whether the method looks at rows with a model before they are collated."""
    hook = run.plugins.hook
    annotates = run.rollouts is None and hook.ft_annotate.get_hookimpls()
    return bool(annotates or hook.ft_step.get_hookimpls())


def before_collating(run: Run, cuts: list[list[Row]]) -> list[list[Row]]:
    """The rows of a step's micro-batches, annotated (those of a rollout are already) and with the statistics of the
    step."""
    rows = [row for each in cuts for row in each]
    if run.rollouts is None:
        rows = run.annotate(rows)
    rows = run.add_step_statistics(rows)
    ends = list(itertools.accumulate(len(each) for each in cuts))
    return [rows[end - len(each) : end] for each, end in zip(cuts, ends, strict=True)]


# ---------------------------------------------------------------- one micro-batch, one step


def loss_of(run: Run, batch: Batch, tokens: int, accumulator: Accumulator) -> torch.Tensor:
    """The loss of one micro-batch as it enters the step's sum; its metrics go into `accumulator`."""
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
    error: str | None


def agree(run: Run, batches: list[Batch], interrupted: str | None = None, error: str | None = None) -> Agreed:
    """One exchange between ranks: counts, number of micro-batches, and whether any rank can't go on."""
    ranks = run.gather(
        (add_counts(b.counts for b in batches), sum(b.num_tokens for b in batches), len(batches), interrupted, error)
    )
    return Agreed(
        totals=add_counts(rank[0] for rank in ranks),
        tokens=sum(rank[1] for rank in ranks),
        micro_batches=max(rank[2] for rank in ranks),
        interrupted=next((rank[3] for rank in ranks if rank[3]), None),
        error=next((rank[4] for rank in ranks if rank[4]), None),
    )


def sync_only_last(run: Run, last: bool) -> contextlib.AbstractContextManager:
    """DDP reduces gradients in the last backward of a step only. FSDP2 keeps its shards small by reducing in each."""
    if last or run.world_size == 1 or run.config.distributed_strategy == "fsdp2":
        return contextlib.nullcontext()
    return run.accelerator.no_sync(run.model)


def clip(run: Run, optimizer: torch.optim.Optimizer) -> float:
    """Scale the gradients down to `max_grad_norm`; gives their norm before that."""
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
    optimizer: torch.optim.Optimizer,
    coverage: GradientCoverage,
    data_time: float = 0.0,
) -> dict[str, float]:
    """Forward and backward of every micro-batch, then one update. Gives the step's metrics over all ranks; `data_time`,
    the seconds that this one waited for its rows, is one of them.

    Raises FtHostError before the update when loss or gradient is not finite, so that the weights stay what they were.
    """
    run.totals = agreed.totals
    accumulator, load = Accumulator(), ExpertLoad()
    batches = batches + [run.collate([]) for _ in range(agreed.micro_batches - len(batches))]
    for index, batch in enumerate(batches):
        with sync_only_last(run, index == len(batches) - 1):
            with oom_context(FORWARD, run.step + 1):
                loss = loss_of(run, batch, agreed.tokens, accumulator)
            load.add(run.policy.routing)
            run.policy.routing = None
            with oom_context(BACKWARD, run.step + 1):
                # DDP and FSDP2 average gradients over ranks; the loss is a sum over them.
                run.accelerator.backward(loss * run.world_size)
    norm = clip(run, optimizer)
    accumulator.add({"perf/data_time": maximum(data_time)} | memory_metrics(run))
    ranks = run.gather((accumulator.local(), load.local()))
    metrics = combine([rank[0] for rank in ranks]) | load_metrics([rank[1] for rank in ranks])
    metrics["grad_norm"] = norm
    if "aux_loss" in metrics:
        balance = run.policy.router_aux_loss_coef * metrics["aux_loss"]
        metrics["moe/aux_share"] = balance / (abs(metrics["loss"]) + balance)
    scaled = run.accelerator.scaler is not None  # float16: the scaler skips a step that overflows, by itself
    if not math.isfinite(metrics["loss"]) or not (scaled or math.isfinite(norm)):
        what = "loss" if not math.isfinite(metrics["loss"]) else "gradient norm"
        run.record_facts(
            {
                "watch/not_finite": what,
                "watch/not_finite_value": str(metrics["loss"] if what == "loss" else norm),
                "watch/not_finite_step": run.step + 1,
                "watch/not_finite_parameter": not_finite_parameter(run),
            }
        )
        raise FtHostError(
            f"step {run.step + 1}: the {what} is {metrics['loss'] if what == 'loss' else norm}; the weights were not "
            f"updated. Lower learning_rate (now {optimizer.param_groups[0]['lr']:.3g}), add warmup_steps, or look at "
            "the rows of this step"
        )
    coverage.update(run, norm)
    before = snapshot_weights(run)
    with oom_context(UPDATE, run.step + 1):
        optimizer.step()
    if scaled:
        metrics["update_skipped"] = float(optimizer.step_was_skipped)
    ratio = update_ratio(run, before) if before else None
    if ratio is not None:
        metrics["update_ratio"] = ratio
    optimizer.zero_grad(set_to_none=True)
    return metrics


def not_finite_parameter(run: Run) -> str | None:
    """The first parameter with a gradient that isn't finite, on this rank."""
    for name, parameter in run.policy.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return None


def evaluate_loss(run: Run, mine: list[Row]) -> dict[str, float]:
    """Loss and metrics over the evaluation rows, of which `mine` are this rank's, annotated, as `eval_*`. Doesn't
    depend on the batch size or the ranks."""
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


def timed(work: Callable[[], None]) -> float:
    """Do it; the seconds that it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass
class Progress:
    """Where the run is: what a checkpoint holds beside weights, optimizer and random states."""

    position: dict[str, Any] | None = None  # of the data
    rows_consumed: int = 0
    epoch: float = 0.0
    num_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    done: bool = False


def fit(
    run: Run,
    stream: Iterable[StepRows],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    progress: Progress,
    *,
    total_rows: int | None,
    evaluate: Callable[[], None],
    save: Callable[[], None],
    asked_to_stop: Callable[[], str | None],
) -> None:
    """Train until the data or `max_steps` ends. Raises Interrupted (state saved) or what went wrong (state kept).

    `total_rows`: rows of all epochs where the schedule runs over rows (packing), None where it runs over steps.
    """
    config = run.config
    limit = config.max_steps if config.max_steps > 0 else None
    saved_at = run.step
    steps = iter(stream)
    asking, coverage = asks_models(run), GradientCoverage(run)
    aside = {"perf/evaluation_time": 0.0, "perf/save_time": 0.0}  # since the step before
    run.model.train()

    def stop(error: FtHostError) -> None:
        if saved_at != run.step:
            save()
        raise error

    while limit is None or run.step < limit:
        started = time.perf_counter()
        run.seconds = {}
        rows, cuts, batches, error = None, [], [], None
        waiting = time.perf_counter()
        try:
            rows = next(steps, None)
            if rows is not None:
                cuts = split_micro_batches(
                    rows.units, config.per_device_train_batch_size, config.max_tokens_per_micro_batch, rows.whole_units
                )
        except UsageError as problem:  # a bad row: this rank tells the others, and all save before they stop
            error = str(problem)
        except FtHostError as problem:  # a rollout that can't go on, on all ranks
            stop(problem)
        data_time = time.perf_counter() - waiting
        if asking and not any(run.gather(error is not None)):  # all ranks take part, or none
            cuts = before_collating(run, cuts)
        waiting = time.perf_counter()
        try:
            batches = [run.collate(each) for each in cuts]
        except UsageError as problem:
            error = str(problem)
        data_time += time.perf_counter() - waiting
        if rows is not None:
            data_time = max(0.0, data_time - rows.metrics.get("perf/rollout_time", 0.0))
        agreed = agree(run, batches, asked_to_stop(), error)
        if agreed.error:
            stop(UsageError(agreed.error))
        if agreed.interrupted not in (None, "signal"):
            stop(StoppedByFinding(agreed.interrupted))
        if agreed.interrupted:
            stop(
                Interrupted(
                    f"stopped at step {run.step} as asked; go on with `ft-host train --resume {run.folder.path}`"
                )
            )
        if rows is None:
            break
        if agreed.micro_batches:
            consumed = run.step if total_rows is None else progress.rows_consumed / total_rows * schedule.total
            rate = schedule.set(consumed)
            try:
                if run.step == 0:
                    check_normalised(run, cuts, agreed.totals)
                metrics = train_step(run, batches, agreed, optimizer, coverage, data_time)
            except OutOfMemory as problem:
                if run.world_size > 1 or problem.phase == UPDATE:
                    raise  # the other ranks are within a collective; weights may be half updated
                stop(problem)
            except FtHostError as problem:
                if not all(torch.isfinite(p).all() for p in run.model.parameters()):
                    raise  # the last update broke the weights: the checkpoints from before it are what is good
                stop(problem)
            run.step += 1
            for companion in run.models.values():
                companion.follow()
        progress.position = rows.position
        progress.rows_consumed = rows.rows_consumed
        progress.epoch = rows.epoch
        progress.dropped = rows.dropped
        if not agreed.micro_batches:
            continue  # every row of this step was dropped
        progress.num_tokens += agreed.tokens
        seconds = time.perf_counter() - started
        supervised = {}
        training = seconds - sum(run.seconds.values())
        if run.seconds:  # a step that began with a rollout
            metrics |= {f"perf/{what}_time": took for what, took in run.seconds.items()} | {"perf/train_time": training}
        if "tokens" in agreed.totals:  # a method that scores whole rows has none
            supervised["perf/supervised_tokens_per_second"] = agreed.totals["tokens"] / training
        run.log(
            {
                "kind": "train",
                "step": run.step,
                "epoch": rows.epoch,
                "loss": metrics.pop("loss"),
                "grad_norm": metrics.pop("grad_norm"),
                "learning_rate": rate,
                "num_tokens": progress.num_tokens,
                **rows.metrics,
                **metrics,
                "perf/step_time": seconds,
                "perf/tokens_per_second": agreed.tokens / training,
                **supervised,
                "perf/peak_memory_mb": peak_memory_mb(run.device),
                **aside,
            }
        )
        aside = dict.fromkeys(aside, 0.0)
        if config.eval_steps and run.step % config.eval_steps == 0:
            aside["perf/evaluation_time"] = timed(evaluate)
        if config.save_steps and run.step % config.save_steps == 0:
            aside["perf/save_time"] = timed(save)
            saved_at = run.step
    progress.done = True
    if saved_at != run.step:
        save()
