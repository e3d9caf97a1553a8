"""The row buffer: the rows of one rollout, and the optimizer steps that are made of them.

Its rows, its place and the next prompt are in every checkpoint. A step is a set of rows that depends on the rollout
alone, not on the number of processes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutPlan
from ft_host.contract.generation import check_annotated, check_json
from ft_host.data.micro_batches import split_micro_batches, units_of
from ft_host.data.order import permutation
from ft_host.data.stream import StepRows
from ft_host.rollouts.drawing import Rollouts
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.data.stream import TrainStream
    from ft_host.run import Run


class Buffer:
    """Iterate over it once: it yields the `StepRows` of this rank, annotated, until the prompts end, or for ever if
    `max_steps` ends the run.

    `rollouts` makes one rollout after the other. `position` is that of the step that a checkpoint was made after,
    `saved` what `state` returned then.
    """

    def __init__(
        self,
        run: Run,
        plan: RolloutPlan,
        rollouts: Rollouts,
        position: dict[str, Any] | None = None,
        saved: dict[str, Any] | None = None,
    ):
        self.run, self.plan, self.rollouts = run, plan, rollouts
        self.number = -1  # the rollout of `rows`
        self.rows: list[Row] = []  # of this rank
        self.sizes: list[int] = []  # rows of each group of the rollout, over all ranks, in order
        self.step = 0  # the next of `plan.updates`
        self.tried = False  # whether JSON can hold the annotated rows
        self.place = place_of(position, saved)  # position in the prompts after this rollout
        self.metrics: dict[str, float] = {}  # of the rollout, logged with its first step
        self.told_of_cut_groups = False
        self.samples: list[Row] = []  # some of its completions, over all ranks, logged likewise
        if saved is not None:
            self.number, self.rows, self.sizes = saved["number"], saved["rows"], saved["sizes"]
            self.metrics, self.samples = saved["metrics"], saved["samples"]
            if position is not None and position["rollout"] == self.number:  # otherwise no step of it was done
                self.step = position["step"]

    @property
    def prompts(self) -> TrainStream:
        return self.rollouts.prompts

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        if not self.rows_left():
            self.fill()
        first = self.step == 0
        if first:
            self._write_samples()
        rows = self.of_step(self.step)
        self.step += 1
        units = self.units(rows)
        if self.plan.whole_groups is None and not self.told_of_cut_groups:
            self._tell_of_cut_groups(units)
        return StepRows(
            units=units,
            whole_units=bool(self.plan.whole_groups),
            rows_consumed=self.place["rows_consumed"],
            epoch=self.place["epoch"],
            position={"rollout": self.number, "step": self.step, "place": self.place},
            dropped=dict(self.prompts.tally.dropped),
            truncated=0,
            last=False,
            metrics=self.metrics if first else {},
        )

    def state(self) -> dict[str, Any]:
        """Return this rank's part of the buffer, JSON-able. Its place is in the position of the last step."""
        return {
            "number": self.number,
            "rows": self.rows,
            "sizes": self.sizes,
            "place": self.place,
            "metrics": self.metrics,
            "samples": self.samples,
            "ahead": self.rollouts.state(self.number),
        }

    def planned_steps(self) -> int | None:
        """Return the optimizer steps of all epochs, if nothing has to be drawn again; None for a stream."""
        prompts = self.prompts.planned_steps()
        return None if prompts is None else math.ceil(prompts / self.plan.prompts) * self.plan.updates

    def close(self) -> None:
        self.rollouts.close()

    # -- steps

    def units(self, rows: list[Row]) -> list[list[Row]]:
        """The rows of a step as what micro-batches are filled with: groups where the plan asks for whole ones, else as
        much of a group as a budget of tokens allows, or single rows."""
        budget = self.run.config.max_tokens_per_micro_batch
        if self.plan.whole_groups:
            return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["group"])]
        return [[row] for row in rows] if budget is None else units_of(rows, budget)

    def _tell_of_cut_groups(self, units: list[list[Row]]) -> None:
        """Say, once a process, that `ft_loss` doesn't see all rows of a prompt together."""
        config, sizes = self.run.config, Counter(row["group"] for row in self.rows)
        cuts = split_micro_batches(units, config.per_device_train_batch_size, config.max_tokens_per_micro_batch)
        seen = [count == sizes[group] for rows in cuts for group, count in Counter(r["group"] for r in rows).items()]
        if all(seen):
            return
        self.told_of_cut_groups = True
        budget = config.max_tokens_per_micro_batch
        why = f"per_device_train_batch_size {config.per_device_train_batch_size}"
        why = why if budget is None else f"max_tokens_per_micro_batch {budget}"
        self.run.say(
            f"the {max(sizes.values())} rows of a prompt don't all stand in one micro-batch ({why}), so ft_loss sees"
            " some of them apart. A method whose loss compares them sets whole_groups=True in its RolloutPlan; one"
            " whose rows have losses of their own sets it to False"
        )

    def rows_left(self) -> bool:
        return self.step < self.plan.updates and bool(self.sizes)

    def of_step(self, step: int) -> list[Row]:
        """Return this rank's rows of one of the rollout's optimizer steps, those of a group next to each other."""
        plan = self.plan
        which, at = divmod(step, plan.steps)
        order = list(range(len(self.sizes)))
        if plan.shuffled:
            of = permutation(len(order), self.run.config.seed, self.number, which, "pass")
            order = [of(index) for index in order]
        # Where prompts ended or had no signal, the number of steps stays and they get smaller.
        if plan.cut_by_groups:
            per_step = math.ceil(len(order) / plan.steps)
            begin, end = (sum(self.sizes[group] for group in order[: number * per_step]) for number in (at, at + 1))
        else:
            per_step = math.ceil(sum(self.sizes) / plan.steps)
            begin, end = at * per_step, (at + 1) * per_step
        mine: dict[int, list[Row]] = {}
        for row in self.rows:
            mine.setdefault(row["group"], []).append(row)
        rows, first = [], 0
        for group in order:
            for index, row in enumerate(mine.get(group, ())):
                if begin <= first + index < end:
                    rows.append(row)
            first += self.sizes[group]
        return rows

    # -- a rollout

    def fill(self) -> None:
        """Make the next rollout. Raises StopIteration after the last prompt, and what `Rollouts.make` raises."""
        run, number = self.run, self.number + 1
        started = time.perf_counter()
        made = self.rollouts.make(number, self.place)
        for what, seconds in made.seconds.items():  # at once: the timeline takes it for the time just past
            run.add_time(what, seconds)
        rows, sizes = self.numbered(made.rows)
        annotating = time.perf_counter()
        annotated = run.annotate(rows)
        check_annotated(run.plugins, annotated, run.config)
        if not self.tried:  # not only at the first checkpoint
            check_json(run.plugins, "ft_annotate", annotated)
            self.tried = True
        # Set together with the rows: a failed rollout is repeated from its first prompt.
        self.rows, self.sizes, self.number, self.step, self.place = annotated, sizes, number, 0, made.place
        run.add_time("annotation", time.perf_counter() - annotating)
        self.metrics = made.metrics | {"perf/rollout_time": time.perf_counter() - started}
        self.samples = self._chosen(made.samples)

    def numbered(self, rows: list[Row]) -> tuple[list[Row], list[int]]:
        """Return the rows with groups counted from 0 over all ranks, without gaps, and the number of rows of each
        group."""
        mine: dict[int, int] = {}
        for row in rows:
            mine[row["group"]] = mine.get(row["group"], 0) + 1
        sizes = {group: size for rank in self.run.gather(mine) for group, size in rank.items()}
        places = {group: index for index, group in enumerate(sorted(sizes))}
        return [row | {"group": places[row["group"]]} for row in rows], [sizes[group] for group in sorted(sizes)]

    def _chosen(self, samples: list[Row]) -> list[Row]:
        """Return some completions, whole groups first, with the advantage from the method, if it computes one."""
        run, most = self.run, self.run.config.logged_completions
        shown = []
        for sample, row in list(zip(samples, self.rows, strict=False))[:most]:
            more = {"advantage": row["advantage"]} if "advantage" in row else {}
            shown.append(sample | more | {"group": row["group"], "tokens": len(row["completion_ids"])})
        ranks = run.gather(shown)
        return sorted((sample for rank in ranks for sample in rank), key=lambda sample: sample["group"])[:most]

    def _write_samples(self) -> None:
        run = self.run
        if run.accelerator.is_main_process:
            for sample in self.samples:
                entry = {"step": run.step + 1, "kind": "rollout", "rollout": self.number, **sample}
                run.folder.append("samples.jsonl", entry)


def place_of(position: dict[str, Any] | None, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Return the position of the prompts after the rollout that a checkpoint holds, or at the beginning."""
    if saved is not None:
        return saved.get("ahead", {}).get("place") or saved["place"]  # 0.6 had none ahead
    return position["place"] if position is not None else {"position": None, "epoch": 0.0, "rows_consumed": 0}


def reshard_rows(saved: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any] | None:
    """Return this rank's part, of `world_size`, of the buffers in a checkpoint. None if there were none."""
    if not saved:
        return None
    if len(saved) == world_size:
        return saved[rank]
    rows = sorted((row for buffer in saved for row in buffer["rows"]), key=lambda row: row["group"])
    return saved[0] | {"rows": [row for row in rows if row["group"] % world_size == rank]}
