"""The one training loop. Every method runs through it: get a step, train, log, evaluate, save."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ft_host.data.micro_batches import split_micro_batches
from ft_host.data.prepare import Tally
from ft_host.errors import DataError, FtHostError, Interrupted, OutOfMemory, StoppedByFinding
from ft_host.monitor.gradients import UpdateMonitor
from ft_host.monitor.memory_usage import peak_memory_mb
from ft_host.monitor.ranks import RankTimes
from ft_host.training.normalisation import check_normalised
from ft_host.training.step import Agreed, agree, asks_models, before_collating, train_step
from ft_host.types import Row
from ft_host.util import devices
from ft_host.util.console import tell
from ft_host.util.disk import missing
from ft_host.util.ranks import everywhere, told
from ft_host.util.seeds import random_states, set_random_states
from ft_host.util.signals import Stop

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
    """Train until the data or `max_steps` ends. Raises Interrupted, StoppedByFinding, DataError where no row is left to
    train on, or any error of a step. The state after the last whole step is saved before, where that is possible.

    `total_rows`: rows of all epochs if the schedule runs over rows (packing), None if it runs over steps.
    """
    config = run.config
    limit = config.max_steps if config.max_steps > 0 else None
    steps, monitor, saved_at = iter(stream), UpdateMonitor(run), run.step
    times = RankTimes(run)
    aside = {"perf/evaluation_time": 0.0, "perf/save_time": 0.0}  # since the step before
    trained_at = progress.epoch  # where the last step was made
    run.model.train()
    before = None
    try:
        while limit is None or run.step < limit:
            started = time.perf_counter()
            run.seconds = {}
            before = kept_state(run)
            with times.getting_rows():
                step = next_step(run, steps, asked_to_stop)
            if step is None:
                break
            if not step.agreed.micro_batches:  # every row of it was dropped
                progress.add(step)
                check_rows_left(progress, trained_at)
                continue
            consumed = run.step if total_rows is None else progress.rows_consumed / total_rows * schedule.total
            rate = schedule.set(consumed)
            if run.step == 0:  # before the first backward: FSDP2 hides its gradients after a forward without one
                check_normalised(run, step.micro_batches, step.agreed.totals)
            run.began = True
            metrics = train_step(run, step.batches, step.agreed, optimizer, monitor, times, step.data_time)
            progress.add(step)
            trained_at = progress.epoch
            run.step += 1
            for model in run.models.values():
                model.follow()
            run.whole, before = True, None
            if run.timeline is not None:
                run.timeline.stepped(run.step)
            seconds = time.perf_counter() - started
            if run.stall is not None:
                run.stall.stepped(seconds)
            run.log(entry_of(run, step, progress, rate, metrics, seconds) | aside)
            aside = dict.fromkeys(aside, 0.0)
            if config.eval_steps and run.step % config.eval_steps == 0:
                aside["perf/evaluation_time"] = timed(run, "evaluation", evaluate)
            if config.save_steps and run.step % config.save_steps == 0:
                saved_at = run.step  # or tried to: not again
                aside["perf/save_time"] = timed(run, "save", save)
    except Exception as error:
        if isinstance(error, OutOfMemory):
            make_room(run, optimizer)
        if saved_at != run.step and can_save(run, error):
            if before is not None:  # the error came within a step
                put_back(run, before)
            save_after(run, save)
        raise
    if not run.step:
        raise DataError(
            f"no row is left to train on: the run would end without a step{Tally(dropped=progress.dropped).said()}"
        )
    progress.done = True
    if saved_at != run.step:
        save()


# ---------------------------------------------------------------- when a step fails


def kept_state(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a step changes before its update, and a checkpoint of the step before needs: random states, and the
    method's own state."""
    return random_states(), copy.deepcopy(run.state)


def put_back(run: Run, before: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Undo of `kept_state`."""
    set_random_states(before[0])
    run.state = before[1]


def can_save(run: Run, error: Exception) -> bool:
    """Return whether the state is that after the last step, and all ranks know of the error and save at once."""
    if run.world_size > 1 and not (isinstance(error, FtHostError) and error.everywhere):
        return False  # the other ranks may be within a collective
    if not run.whole or missing(run.folder.path) is not None:
        return False
    # Where the last update broke the weights, the checkpoints from before it are what is good.
    return all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


def make_room(run: Run, optimizer: AcceleratedOptimizer) -> None:
    """Give up what a step that ran out of memory has left: its gradients, which are made again, and what torch keeps of
    the device for later. Else a checkpoint may not have the memory to gather what it writes."""
    optimizer.zero_grad(set_to_none=True)
    devices.give_back(run.device)


def save_after(run: Run, save: Callable[[], None]) -> None:
    """Save after an error, which is what the user must see: that the state can't be saved is only told."""
    try:
        save()
    except FtHostError as error:
        if run.accelerator.is_main_process:
            tell(f"the state after step {run.step} could not be saved: {error}", "warning", run.config.progress)


def check_rows_left(progress: Progress, trained_at: float) -> None:
    """Raise DataError where a whole epoch has gone by without a row to train on."""
    if progress.epoch - trained_at >= 1 - 1e-9:
        raise DataError(f"no row is left to train on: an epoch has given none{Tally(dropped=progress.dropped).said()}")


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
    them raises, where it can be told: any error of a row, a hook or a process; Interrupted or StoppedByFinding if one
    must stop."""
    try:
        return _next_step(run, steps, asked_to_stop)
    except Stop as stopped:
        if run.signals.hurried:
            raise
        raise Interrupted(run.stopped_as_asked()) from stopped
    except Exception as error:
        if run.signals.asked and not told(error):  # a signal to all processes ends those that prepare rows at once
            run.tell_ranks(Interrupted(run.stopped_as_asked()))
        run.tell_ranks(error)


def _next_step(run: Run, steps: Iterator[StepRows], asked_to_stop: Callable[[], str | None]) -> Step | None:
    config = run.config
    cuts: list[list[Row]] = []
    waiting = time.perf_counter()
    with run.may_stop() if run.rollouts is None else contextlib.nullcontext():  # a rollout says itself where
        rows = next(steps, None)
    if rows is not None:
        cuts = split_micro_batches(
            rows.units, config.per_device_train_batch_size, config.max_tokens_per_micro_batch, rows.whole_units
        )
    data_time = time.perf_counter() - waiting
    if asks_models(run):
        run.gather(None)  # all ranks have their rows, or none runs a model
        cuts = before_collating(run, cuts)
    waiting = time.perf_counter()
    batches = [run.collate(each) for each in cuts]
    data_time += time.perf_counter() - waiting
    agreed = agree(run, batches, asked_to_stop())
    if agreed.interrupted not in (None, "signal"):
        raise everywhere(StoppedByFinding(agreed.interrupted))
    if agreed.interrupted:
        raise everywhere(Interrupted(run.stopped_as_asked()))
    if rows is None:
        return None
    data_time = max(0.0, data_time - rows.metrics.get("perf/rollout_time", 0.0))
    return Step(rows=rows, micro_batches=cuts, batches=batches, agreed=agreed, data_time=data_time)


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


def timed(run: Run, what: str, work: Callable[[], None]) -> float:
    """Do the work and return the seconds that it took."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    run.ended(what, seconds)
    return seconds
