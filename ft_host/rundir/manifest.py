"""The content of run.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ft_host import registry
from ft_host._version import __version__
from ft_host.config.plan import ahead_notes, rollout_notes
from ft_host.config.rollout import RolloutConfig
from ft_host.rundir.folder import FORMAT
from ft_host.rundir.lines import number_of
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.run import Run

PLUGIN = ("kind", "name", "distribution", "version", "stability")


def new_manifest(
    config: RunConfig, origins: dict[str, str], chosen: list[registry.PluginInfo], device: str, processes: int
) -> dict[str, Any]:
    """Return run.json for a new run, without its data and its plan. The first of `chosen` is the method; `device` is a
    type, such as cpu."""
    method = chosen[0]
    return {
        "format": FORMAT,
        "method": method.name,
        "reference": registry.reference(method),
        "status": "running",
        "created": now(),
        "finished": None,
        "error": None,
        "config": dataclasses.asdict(config),
        "origins": {field.name: origins.get(field.name, "default") for field in dataclasses.fields(config)},
        "plugins": [
            {key: value for key, value in dataclasses.asdict(info).items() if key in PLUGIN}
            | ({} if info.distribution else {"location": info.location})
            for info in chosen
        ],
        "environment": _environment(device, processes),
        "parent": None,
    }


def plan_of(run: Run, total: int | None) -> tuple[dict[str, Any], list[str]]:
    """Return the fields `plan` and `model` of run.json, and the plan in words."""
    from ft_host.models.beside import models_beside, notes_of  # here alone, as in `_environment`

    config, base = run.config, type(run.policy.causal_lm).__name__
    per_step = rows_per_step(config, run.world_size)
    parameters = sum(p.numel() for p in run.policy.parameters())
    trainable = sum(p.numel() for p in run.policy.parameters() if p.requires_grad)
    notes = [
        *(rollout_notes(run.rollouts, run.world_size) if run.rollouts else []),
        *(ahead_notes(config, run.rollouts) if run.rollouts and isinstance(config, RolloutConfig) else []),
        f"{per_step} {'blocks' if config.packing else 'rows'} a step ({config.per_device_train_batch_size} a device × "
        f"{config.gradient_accumulation_steps} accumulated × {run.world_size} processes), "
        f"{total} steps" + (" (estimated)" if config.packing and config.max_steps < 1 else ""),
        (
            f"{base}, {parameters / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M trained, "
            f"{held_in(run.policy.parameters())}, {run.accelerator.mixed_precision} mixed precision, on {run.device}"
        ),
        run.policy.attention.said,
        *notes_of(models_beside(run), run.policy),
    ]
    return {
        "plan": {
            "rows_per_step": per_step,
            "planned_steps": total,
            "notes": [*notes, *run.policy.notes],
            "rollout": dataclasses.asdict(run.rollouts) if run.rollouts else None,
            "kernel": run.policy.kernel,
            "rows_kernel": run.policy.rows_kernel,
            "kernel_refused": run.policy.attention.refused,
        },
        "model": {"class": base, "parameters": parameters, "trainable": trainable},
    }, notes


def held_in(parameters: Iterable[Any]) -> str:
    """Return "float32 weights", or "bfloat16 weights, float32 where trained"."""
    types: dict[bool, set[str]] = {True: set(), False: set()}
    for parameter in parameters:
        types[parameter.requires_grad].add(str(parameter.dtype).removeprefix("torch."))
    trained, frozen = (", ".join(sorted(types[which])) for which in (True, False))
    if not frozen or not trained or trained == frozen:
        return f"{trained or frozen} weights"
    return f"{frozen} weights, {trained} where trained"


def plan_facts(run: Run, total: int | None) -> dict[str, Any]:
    """Return the facts of the plan and the model that rules read."""
    from ft_host.models.beside import models_beside, refused_of

    parameters = [(p.numel(), p.requires_grad) for p in run.policy.parameters()]
    facts = {
        "plan/total_steps": total,
        "plan/rows_per_step": rows_per_step(run.config, run.world_size),
        "plan/processes": run.world_size,
        "plan/device": run.device.type,
        "plan/mixed_precision": run.accelerator.mixed_precision,
        "plan/kernel": run.policy.kernel,
        "plan/rows_kernel": run.policy.rows_kernel,
        "plan/kernel_refused": run.policy.attention.refused,
        "plan/companions_refused": refused_of(models_beside(run), run.policy) or None,
        "model/parameters": sum(size for size, _ in parameters),
        "model/trainable": sum(size for size, trained in parameters if trained),
        "model/vocab_size": run.policy.config.get_text_config().vocab_size,
    }
    if run.rollouts:
        plan = run.rollouts
        facts |= {"plan/prompts": plan.prompts, "plan/generations": plan.generations, "plan/updates": plan.updates}
        facts["plan/rows_per_prompt"] = plan.rows_per_prompt
    return {name: value for name, value in facts.items() if value is not None}


def rows_per_step(config: RunConfig, processes: int) -> int:
    if isinstance(config, RolloutConfig):
        return config.rollout_plan(processes).rows_per_step
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * processes


def _environment(device: str, processes: int) -> dict[str, Any]:
    names = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "pluggy")
    versions = {name: importlib.metadata.version(name) for name in names}
    found = f"cpu, {os.cpu_count()} cores"
    if device != "cpu":
        from ft_host.util import devices  # here alone: `ft-host runs` and `report` read folders without torch

        found = devices.name_of(devices.chosen(False))  # the current one, which accelerate has set
    return {
        "ft-host": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "devices": [found],
        "world_size": processes,
    }


def lost_metrics(lines: list[dict[str, Any]], step: int) -> list[str]:
    """Return a sentence where metrics.jsonl no longer has the line of each step up to `step`."""
    logged = {entry["step"] for entry in lines if entry["kind"] == "train"}
    lost = step - sum(1 for number in logged if 0 < number <= step)
    if not lost:
        return []
    return [f"metrics.jsonl lacks {lost} of the {step} steps before this one: it was removed or cut; the rest goes on"]


def before_and_after(lines: list[dict[str, Any]]) -> list[str]:
    """Return the first and last value of each evaluation metric, in words."""
    evals = [entry for entry in lines if entry["kind"] == "eval"]
    if len(evals) < 2:
        return []
    keys = [key for key in evals[-1] if key == "eval_loss" or key.startswith("eval_rewards/")]
    keys = [key for key in keys if not key.endswith("/none_share")]  # which has findings of its own
    return [
        f"{key.removeprefix('eval_').removesuffix('/mean')} on held-out rows: {number_of(evals[0][key]):.4g} before, "
        f"{number_of(evals[-1][key]):.4g} after"
        for key in keys
        if key in evals[0] and None not in (number_of(evals[0][key]), number_of(evals[-1][key]))
    ]
