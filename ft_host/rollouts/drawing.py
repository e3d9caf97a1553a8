"""Rollouts one after the other: prompts are drawn, completed, and drawn anew where groups were left out.

This is `rollouts: sync`. What makes rollouts of another kind has the same two methods (`Rollouts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ft_host.config.rollout import RolloutPlan
from ft_host.contract.generation import check_json
from ft_host.errors import DataError, Interrupted
from ft_host.metrics import Accumulator, combine
from ft_host.rollouts.rewards import no_signal, without_zeros
from ft_host.rollouts.rollout import RolloutRun
from ft_host.types import Rollout, Row
from ft_host.util.ranks import everywhere

if TYPE_CHECKING:
    from ft_host.data.stream import TrainStream
    from ft_host.run import Run


@dataclass(kw_only=True)
class RolloutMade:
    """A rollout, before it is annotated. `rows` and `samples` (none, or one for each row) are this rank's; `place` is
    the position of the prompts behind it."""

    rows: list[Row]
    samples: list[dict[str, Any]]
    place: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # of the step that isn't training, by what
    prompts: list[dict[str, Any]] = field(default_factory=list)  # this rank's, with the weights of each token, if kept


class Rollouts(Protocol):
    """Makes the rollouts of a run. All ranks call it at once."""

    prompts: TrainStream

    def make(self, number: int, place: dict[str, Any]) -> RolloutMade:
        """Return rollout `number`, from the prompts behind `place` on. Raises StopIteration after the last prompt,
        FtHostError where no group has a signal."""

    def state(self, held: int) -> dict[str, Any]:
        """Return what a checkpoint must hold of rollouts to come, JSON-able. `held` is the rollout that it has the rows
        of: one that was made after it has failed on its way there, and is made again."""

    def close(self) -> None:
        """End what was started."""


@dataclass(kw_only=True)
class Drawing:
    """`rollout_run(number)` returns what `ft_rollout` gets, and `before` is called with the first prompts of each
    rollout, before it; `complete` calls it on this rank's prompts, all ranks at once. `prompts` yields one raw row a
    step, the same on all ranks."""

    run: Run
    prompts: TrainStream
    plan: RolloutPlan
    rollout_run: Callable[[int], RolloutRun]
    before: Callable[[list[Row]], None]
    complete: Callable[[list[Row], RolloutRun], Rollout]
    ends: Callable[[], None] = lambda: None  # called when the run ends
    tried: bool = False  # whether JSON can hold the rows

    def make(self, number: int, place: dict[str, Any]) -> RolloutMade:
        run, plan = self.run, self.plan
        rollout_run = self.rollout_run(number)
        accumulator = Accumulator()
        rows: list[Row] = []
        samples: list[dict[str, Any]] = []
        count = kept = draws = 0
        while kept < plan.prompts and draws < run.config.max_rollout_draws:
            with run.may_stop():
                drawn, place = draw(self.prompts, plan.prompts - kept, place)
                if not drawn:
                    break
                draws += 1
                mine = [row | {"group": count + index} for index, row in enumerate(drawn)][run.rank :: run.world_size]
                count += len(drawn)
                if draws == 1:
                    self.before(mine)
                rollout = self.complete(mine, rollout_run)
            accumulator.add(rollout.metrics)
            if not self.tried:
                check_json(run.plugins, "ft_rollout", rollout.rows)
                self.tried = True
            rows += rollout.rows
            samples += rollout.samples
            ranks = run.gather((len({row["group"] for row in rollout.rows}), run.signals.asked))
            kept += sum(groups for groups, _ in ranks)
            if any(asked for _, asked in ranks):  # it is made again when the run goes on
                raise everywhere(Interrupted(run.stopped_as_asked()))
        if not count:
            raise StopIteration
        metrics = without_zeros(combine(run.gather(accumulator.local())))
        if not kept:
            raise no_signal(metrics, number + 1, count, draws)
        if kept < plan.prompts and draws == run.config.max_rollout_draws:
            say_few(run, number, kept, draws)
        if draws > 1:
            metrics["rollout/prompts_drawn"] = count
        return RolloutMade(
            rows=rows,
            samples=samples,
            place=place,
            metrics=metrics | self._speed(rollout_run),
            seconds=rollout_run.seconds,
        )

    def state(self, held: int) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.prompts.close()
        self.ends()

    def _speed(self, rollout_run: RolloutRun) -> dict[str, float]:
        """Return the tokens that all ranks sampled per second of this rank's generation."""
        tokens, seconds = sum(self.run.gather(rollout_run.tokens)), rollout_run.seconds.get("generation", 0.0)
        return {"perf/generation_tokens_per_second": tokens / seconds} if seconds else {}


def say_few(run: Run, number: int, kept: int, draws: int) -> None:
    run.say(
        f"rollout {number + 1}: {kept} of {run.rollouts.prompts} groups had a signal after {draws} draws "
        "(max_rollout_draws)",
        "warning",
    )


def draw(prompts: TrainStream, count: int, place: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """Return the next prompts, each with `where` it is in the data, fewer at the end of it, and the position behind
    them. Raises DataError where an epoch has given none."""
    rows: list[Row] = []
    begin = place["epoch"]
    while len(rows) < count:
        step = next(prompts, None)
        if step is None:
            break
        if not rows and not any(step.units) and step.epoch - begin >= 1 - 1e-9:
            raise DataError(f"no prompt is left: an epoch has given none{prompts.tally.said()}")
        place = {"position": step.position, "epoch": step.epoch, "rows_consumed": step.rows_consumed}
        drawn = [row for unit in step.units for row in unit]
        rows += [row | {"where": where} for row, where in zip(drawn, step.wheres, strict=True)]
    return rows, place
