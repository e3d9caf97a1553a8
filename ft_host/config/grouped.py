"""The fields of methods that sample several completions per prompt, with TRL's names. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.config.rollout import RolloutConfig, RolloutPlan, listed, nearest_multiples
from ft_host.config.run import RunConfig, option
from ft_host.config.usual import Usual
from ft_host.errors import ConfigError


@dataclass(kw_only=True)
class GroupedRolloutConfig(RolloutConfig):
    """The fields of a run with several completions per prompt, and its `rollout_plan`.

    A method changes a default, a bound or a text by declaring the field again, as for any field of the host.
    """

    # Rows that `ft_rollout` makes of a prompt; None: one a completion. 1 where a row is a pair or the best of several.
    rows_per_prompt: ClassVar[int | None] = None
    whole_groups: ClassVar[bool | None] = None  # that of `RolloutPlan`

    num_generations: int = option(
        8,
        "Completions of a prompt, which are compared with each other: more make a better baseline, fewer leave "
        "room for more prompts.",
        group="rollouts",
        gt=1,
    )
    steps_per_generation: int | None = option(
        None,
        "Micro-batches of a rollout on each process. Not set: gradient_accumulation_steps, so that a rollout is "
        "one optimizer step.",
        group="rollouts",
        gt=0,
    )
    generation_batch_size: int | None = option(
        None, "The same as a number of completions, over all processes.", group="rollouts", gt=0
    )
    num_iterations: int = option(
        1,
        "Passes over each rollout. More than 1 trains on completions that are no longer the policy's.",
        group="rollouts",
        gt=0,
        usual=Usual(
            high=8,
            above=("divergence", "forgetting"),
            why="the later passes learn from completions that the policy would no longer write",
            source="Schulman et al., arXiv 1707.06347: 3 to 10; groups are seldom used more than four times",
        ),
    )

    def rollout_plan(self, processes: int) -> RolloutPlan:
        return grouped_plan(
            self,
            processes,
            num_generations=self.num_generations,
            steps_per_generation=self.steps_per_generation,
            generation_batch_size=self.generation_batch_size,
            num_iterations=self.num_iterations,
            rows_per_prompt=self.rows_per_prompt,
            whole_groups=self.whole_groups,
        )


def grouped_plan(
    config: RunConfig,
    processes: int,
    *,
    num_generations: int,
    steps_per_generation: int | None,
    generation_batch_size: int | None,
    num_iterations: int,
    rows_per_prompt: int | None = None,
    whole_groups: bool | None = None,
) -> RolloutPlan:
    """The plan of methods that compare the completions of a prompt, under TRL's names: a generation batch is
    `generation_batch_size` completions, or `steps_per_generation` micro-batches of all processes (not set: one
    optimizer step). `rows_per_prompt`: rows to train on of a prompt, where they aren't its completions; micro-batches
    and steps are then of such rows. `whole_groups` is that of `RolloutPlan`.

    Raises ConfigError, with the nearest possible numbers, where it doesn't come out even.
    """
    micro = config.per_device_train_batch_size * processes
    step = micro * config.gradient_accumulation_steps
    sizes = f"per_device_train_batch_size {config.per_device_train_batch_size} × {processes} processes"
    if steps_per_generation is not None and generation_batch_size is not None:
        raise ConfigError("steps_per_generation and generation_batch_size say the same in two ways; set one of them")
    of_prompt = num_generations if rows_per_prompt is None else rows_per_prompt
    what = "completions" if of_prompt == num_generations else "rows"
    if generation_batch_size is None:
        rows = micro * (steps_per_generation or config.gradient_accumulation_steps)
        field = "steps_per_generation" if steps_per_generation else "per_device_train_batch_size"
    else:
        if of_prompt != num_generations and generation_batch_size % num_generations:
            raise ConfigError(
                f"generation_batch_size: {generation_batch_size} completions can't be made of groups of"
                f" {num_generations}; nearest: {listed(nearest_multiples(generation_batch_size, num_generations))}"
            )
        rows, field = generation_batch_size * of_prompt // num_generations, "generation_batch_size"
    if rows % step:
        near = nearest_multiples(rows, step)
        if field == "steps_per_generation":
            near = [each // micro for each in near]
        raise ConfigError(
            f"{field}: a rollout of {rows} {what} is no whole number of optimizer steps of {step} ({sizes} × "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps}); nearest: {listed(near)}"
        )
    if rows % of_prompt and what == "rows":
        raise ConfigError(
            f"per_device_train_batch_size: {rows} rows a rollout ({sizes} × {rows // micro} micro-batches) can't be"
            f" made of groups of {of_prompt}; nearest: a rollout of {listed(nearest_multiples(rows, of_prompt))} rows"
        )
    if rows % of_prompt:
        divisors = [each for each in range(2, rows + 1) if rows % each == 0]  # a group of one compares nothing
        near = sorted(divisors, key=lambda each: (abs(each - num_generations), each))[:2]
        nearest = f"nearest num_generations: {listed(sorted(near))}, or a rollout" if near else "nearest: a rollout"
        raise ConfigError(
            f"num_generations: {rows} completions a rollout ({sizes} × {rows // micro} micro-batches) can't be made of "
            f"groups of {num_generations}; {nearest} of "
            f"{listed(nearest_multiples(rows, num_generations))} completions"
        )
    return RolloutPlan(
        prompts=rows // of_prompt,
        generations=num_generations,
        rows=rows,
        steps=rows // step,
        passes=num_iterations,
        whole_groups=whole_groups,
    )
