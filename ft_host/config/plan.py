"""`--dry-run`: the run as a config file that reproduces it, with the origin of each value."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.config.fields import GROUPS, fields_of
from ft_host.config.held_out import paths_of
from ft_host.config.memory_plan import memory_notes
from ft_host.config.resolve import Resolved
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.config.text import yaml_text

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig


def dry_run(method: str, label: str, resolved: Resolved, processes: int) -> str:
    """Return the plan as comments and the config as YAML. `processes`: the number of processes that share a step's
    rows.
    """
    fields = fields_of(type(resolved.config))
    lines = [f"# {line}" for line in [f"method: {method} ({label})", *plan(resolved.config, processes)]]
    lines += ["", f"method: {yaml_text(method)}"]
    for group, title in GROUPS.items():
        members = [field for field in fields.values() if field.group == group]
        if members:
            lines += ["", f"# ---- {f'of {method}' if group == 'method' else title}"]
        for field in members:
            setting = f"{field.name}: {yaml_text(getattr(resolved.config, field.name))}"
            lines.append(f"{setting:<48}  # {resolved.origins[field.name]}")
    return "\n".join(lines) + "\n"


def plan(config: RunConfig, processes: int) -> list[str]:
    """Return what is known of a run before its data and model are opened, one sentence per line."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
    rollouts = config.rollout_plan(processes) if isinstance(config, RolloutConfig) else None
    what = "blocks" if config.packing else "rows"
    factors = f"{config.per_device_train_batch_size} a device × {config.gradient_accumulation_steps} accumulated"
    step = f"{per_step} {what} ({factors} × {processes} process{'' if processes == 1 else 'es'})"
    if rollouts and rollouts.rows_per_step != per_step:  # the plan is the method's own
        step = f"{rollouts.rows_per_step} rows, {config.per_device_train_batch_size} at a time on each process"
    data = config.dataset if isinstance(config.dataset, str) else ", ".join(item["path"] for item in config.dataset)
    evaluated = ", ".join(paths_of(config.eval_dataset)) or (
        config.dataset_test_split and f"split {config.dataset_test_split}"
    )
    when = "after training" + (f" and every {config.eval_steps} steps" if config.eval_steps else "")
    when = f"before and {when}" if config.eval_on_start else when
    scored = config.eval_reward or (rollouts and config.reward)
    rewards = f", with {', '.join(scored)}" if scored else ""
    return [
        f"model: {config.model}" + (f", LoRA of rank {config.lora_r}" if config.use_peft else ", all weights"),
        f"data: {data}",
        *(rollout_notes(rollouts, processes) if rollouts else []),
        *(ahead_notes(config, rollouts) if rollouts and isinstance(config, RolloutConfig) else []),
        f"each optimizer step: {step}",
        f"length: {length(config, per_step, rollouts)}",
        f"evaluation: {evaluated}, {when}{rewards}" if evaluated else "evaluation: none",
        *memory_notes(config, processes),
        f"run folder: {config.output_dir or 'a new one in runs/'}",
    ]


def rollout_notes(plan: RolloutPlan, processes: int) -> list[str]:
    """Describe a rollout and its use in words."""
    of = f"{plan.steps} optimizer step" + ("s" if plan.steps > 1 else "") + f" of {plan.rows_per_step}"
    if plan.step_sizes[-1] != plan.rows_per_step:
        of += f", the last of {plan.step_sizes[-1]}"
    rows = "" if plan.rows == plan.completions else f", made into {plan.rows} rows"
    passes = f", in {plan.passes} passes: {plan.updates} updates" if plan.passes > 1 else ""
    made = f"{plan.prompts} prompts × {plan.generations} completions = {plan.completions}{rows}"
    notes = [f"each rollout: {made}, in {of}{passes}"]
    if plan.prompts % processes:
        notes.append(
            f"{plan.prompts} prompts a rollout don't come out even over {processes} processes, and the completions of a"
            " prompt stay on one: some processes wait for others"
        )
    return notes


def ahead_notes(config: RolloutConfig, plan: RolloutPlan) -> list[str]:
    """Say in words what `rollouts` and `max_staleness` come to."""
    if config.replay is not None:
        return [f"rollouts: those that {config.replay} has recorded, in their order; none is sampled"]
    ahead = config.rollouts_ahead(plan)
    if config.rollouts == "sync":
        return []
    where = "in this process" if config.rollouts == "overlap" else "outside this process"
    if not ahead:
        return [f"rollouts: made {where}, one after the other, as rollouts: sync does (max_staleness: 0)"]
    return [
        f"rollouts: {config.rollouts}, made {where}; up to {(ahead + 1) * plan.prompts} prompts are under way or ready,"
        f" and no token is older than {ahead * plan.updates} steps when its rollout is first learnt from"
    ]


def length(config: RunConfig, per_step: int, rollouts: RolloutPlan | None) -> str:
    """Say how many steps there will be, as far as that is known without opening the data."""
    if config.max_steps > 0:
        return f"{config.max_steps} steps"
    epochs = f"{config.num_train_epochs:g} epochs"
    rows = count_lines(config.dataset) if isinstance(config.dataset, str) else None
    if rows is None:
        return f"{epochs}; the number of steps is known once the data is opened"
    if rollouts:
        steps = math.ceil(rows * config.num_train_epochs / rollouts.prompts) * rollouts.updates
        return f"{epochs} of {rows} prompts, about {steps} steps"
    if config.packing:
        return f"{epochs} of {rows} rows; the number of steps depends on how they pack"
    # The last step of an epoch may be filled from the next one, so epochs are not rounded separately.
    return f"{epochs} of {rows} rows, about {math.ceil(rows * config.num_train_epochs / per_step)} steps"


def count_lines(dataset: str) -> int | None:
    """Return the rows of a .jsonl file, without parsing them; None for anything else."""
    if not dataset.endswith(".jsonl") or not Path(dataset).is_file():
        return None
    with open(dataset, "rb") as file:
        return sum(1 for line in file if line.strip())
