"""The one training loop. Every method runs through it: get a step, train, log, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ft_host.data.micro_batches import split_micro_batches
from ft_host.errors import FtHostError, HookError, Interrupted, OutOfMemory, StoppedByFinding, UsageError
from ft_host.monitor.gradients import UpdateMonitor
from ft_host.monitor.memory_usage import peak_memory_mb
from ft_host.training.normalisation import check_normalised
from ft_host.training.step import Agreed, agree, asks_models, before_collating, train_step
from ft_host.types import Row
from ft_host.util.memory import UPDATE

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer

    from ft_host.batch import Batch
    from ft_host.data.stream import StepRows
    from ft_host.run import Run
    from ft_host.training.optim import Schedule


@dataclass
class Progress:
    """The progress of the run: what a checkpoint holds beside weights, optimizer and random states."""

    position: dict[str, Any] | None = None  # of the data
    rows_consumed: int = 0
    epoch: float = 0.0
    num_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    done: bool = False

    def add(self, step: Step) -> None:
        """Count a step that is done, or whose rows were all dropped."""
        rows = step.rows
        self.position, self.rows_consumed, self.epoch = rows.position, rows.rows_consumed, rows.epoch
        self.dropped = rows.dropped
        self.num_tokens += step.agreed.tokens if step.agreed.micro_batches else 0


def fit(
    run: Run,
    stream: Iterable[StepRows],
    optimizer: AcceleratedOptimizer,
    schedule: Schedule,
    progress: Progress,
    *,
    total_rows: int | None,
    evaluate: Callable[[], None],
    save: Callable[[], None],
    asked_to_stop: Callable[[], str | None],
) -> None:
    """Train until the data or `max_steps` ends. Raises Interrupted (state saved) or the error of a step (earlier state
    kept).

    `total_rows`: rows of all epochs if the schedule runs over rows (packing), None if it runs over steps.
    """
    config = run.config
    limit = config.max_steps if config.max_steps > 0 else None
    steps, monitor, saved_at = iter(stream), UpdateMonitor(run), run.step
    aside = {"perf/evaluation_time": 0.0, "perf/save_time": 0.0}  # since the step before
    run.model.train()
    while limit is None or run.step < limit:
        started = time.perf_counter()
        run.seconds = {}
        try:
            step = next_step(run, steps, asked_to_stop)
            if step is None:
                break
            if step.agreed.micro_batches:  # else every row of it was dropped
                consumed = run.step if total_rows is None else progress.rows_consumed / total_rows * schedule.total
                rate = schedule.set(consumed)
                if run.step == 0:  # before the first backward: FSDP2 hides its gradients after a forward without one
                    check_normalised(run, step.micro_batches, step.agreed.totals)
                metrics = train_step(run, step.batches, step.agreed, optimizer, monitor, step.data_time)
        except FtHostError as error:
            if saved_at != run.step and can_save(run, error):
                save()
            raise
        progress.add(step)
        if not step.agreed.micro_batches:
            continue
        run.step += 1
        for model in run.models.values():
            model.follow()
        run.log(entry_of(run, step, progress, rate, metrics, time.perf_counter() - started) | aside)
        aside = dict.fromkeys(aside, 0.0)
        if config.eval_steps and run.step % config.eval_steps == 0:
            aside["perf/evaluation_time"] = timed(evaluate)
        if config.save_steps and run.step % config.save_steps == 0:
            aside["perf/save_time"] = timed(save)
            saved_at = run.step
    progress.done = True
    if saved_at != run.step:
        save()


# ---------------------------------------------------------------- parts of it


@dataclass(kw_only=True)
class Step:
    """The rows of one optimizer step, on this rank, and what all ranks know of it."""

    rows: StepRows
    micro_batches: list[list[Row]]
    batches: list[Batch]
    agreed: Agreed
    data_time: float  # seconds that this rank waited for them, without a rollout's


def next_step(run: Run, steps: Iterator[StepRows], asked_to_stop: Callable[[], str | None]) -> Step | None:
    """Return the next rows, annotated and collated; None after the last. All ranks must call it, and raise what one of
    them raises: UsageError for a row that can't be used, Interrupted or StoppedByFinding if one must stop."""
    config = run.config
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
    data_time = time.perf_counter() - waiting
    if asks_models(run) and not any(run.gather(error is not None)):  # all ranks take part, or none
        cuts = before_collating(run, cuts)
    waiting = time.perf_counter()
    try:
        batches = [run.collate(each) for each in cuts]
    except UsageError as problem:
        error = str(problem)
    data_time += time.perf_counter() - waiting
    agreed = agree(run, batches, asked_to_stop(), error)
    if agreed.error:
        raise UsageError(agreed.error)
    if agreed.interrupted not in (None, "signal"):
        raise StoppedByFinding(agreed.interrupted)
    if agreed.interrupted:
        raise Interrupted(f"stopped at step {run.step} as asked; go on with `ft-host train --resume {run.folder.path}`")
    if rows is None:
        return None
    data_time = max(0.0, data_time - rows.metrics.get("perf/rollout_time", 0.0))
    return Step(rows=rows, micro_batches=cuts, batches=batches, agreed=agreed, data_time=data_time)


def can_save(run: Run, error: FtHostError) -> bool:
    """Return whether the state is that after the last step, and all ranks know of the error and save at once."""
    if isinstance(error, (OutOfMemory, HookError)) and run.world_size > 1:
        return False  # the other ranks may be within a collective
    if isinstance(error, OutOfMemory) and error.phase == UPDATE:
        return False  # weights may be half updated
    # Where the last update broke the weights, the checkpoints from before it are what is good.
    return all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


def entry_of(
    run: Run, step: Step, progress: Progress, rate: float, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    """Return the line of metrics.jsonl of a step that took so many seconds."""
    training = seconds - sum(run.seconds.values())
    times = {f"perf/{what}_time": took for what, took in run.seconds.items()}
    if times:  # a step that began with a rollout
        times["perf/train_time"] = training
    tokens, supervised = step.agreed.tokens, step.agreed.totals.get("tokens")  # of whole rows none is supervised
    return {
        "kind": "train",
        "step": run.step,
        "epoch": step.rows.epoch,
        "loss": metrics["loss"],
        "grad_norm": metrics["grad_norm"],
        "learning_rate": rate,
        "num_tokens": progress.num_tokens,
        **step.rows.metrics,
        **{name: value for name, value in metrics.items() if name not in ("loss", "grad_norm")},
        **times,
        "perf/step_time": seconds,
        "perf/tokens_per_second": tokens / training,
        **({} if supervised is None else {"perf/supervised_tokens_per_second": supervised / training}),
        "perf/peak_memory_mb": peak_memory_mb(run.device),
    }


def timed(work: Callable[[], None]) -> float:
    """Do the work and return the seconds that it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
