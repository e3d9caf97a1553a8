"""Fields of TRL as fields of a method here: the same name, another name, another form, or none, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ft_host.config import RunConfig
from ft_host.config.answers import answer
from ft_host.config.fields import Fields, Mismatch, fields_of, fit, names_of, vars_of
from ft_host.config.renamed import RENAMED, already
from ft_host.migrate.sources import Found

Values = dict[str, Any]


@dataclass
class Translated:
    """`taken`: our fields with their values and a comment, empty where name and value are the same. `defaults`: of
    fields that weren't given, TRL's defaults that change the run. `left`: what has no counterpart, and why."""

    taken: dict[str, tuple[Any, str]] = field(default_factory=dict)
    defaults: dict[str, tuple[Any, str]] = field(default_factory=dict)
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # what is done here anyway


def only(wanted: Any, values: Values) -> Callable[[Any], Values | None]:
    """For this value these fields; for another one there is nothing."""
    return lambda value: dict(values) if value == wanted else None


def backend(name: str) -> Callable[[Any], Values | None]:
    return lambda value: {"backend_config": {name: value}}


# What another value or several fields stand for: None where there is no counterpart of this value.
FORMS: dict[str, Callable[[Any], Values | None]] = {
    "warmup_ratio": lambda value: {"warmup_steps": value},
    "use_vllm": lambda value: {"backend": "vllm"} if value else {},
    "vllm_mode": lambda value: {"backend_config": {"mode": "inprocess" if value == "colocate" else "server"}},
    "vllm_server_base_url": backend("url"),
    "vllm_server_timeout": backend("start_timeout"),
    "vllm_gpu_memory_utilization": backend("gpu_memory_utilization"),
    "vllm_tensor_parallel_size": backend("tensor_parallel_size"),
    "vllm_max_model_length": backend("max_model_len"),
    "vllm_importance_sampling_correction": only(False, {"importance_sampling_correction": "none"}),
    "vllm_importance_sampling_mode": lambda value: {"importance_sampling_correction": value},
    "eval_strategy": only("steps", {}),
    "evaluation_strategy": only("steps", {}),
    "do_eval": only(True, {}),
    "save_strategy": only("no", {"save_steps": 0}),
    "shuffle_dataset": lambda value: {"train_sampling_strategy": "random" if value else "sequential"},
    "group_by_length": only(True, {"train_sampling_strategy": "group_by_length"}),
    "precompute_ref_batch_size": lambda value: {"per_device_eval_batch_size": value},
    "deepspeed": lambda value: {"distributed_strategy": "fsdp2"},
    "fsdp": lambda value: {"distributed_strategy": "fsdp2"} if value else {},
    "disable_tqdm": only(True, {"progress": "lines"}),
    "rpo_alpha": lambda value: {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, value]},
}


def translate(found: Found, config_class: type[RunConfig]) -> Translated:
    """Return what was found in the fields of this class."""
    fields, out = fields_of(config_class), Translated()
    names = names_of(fields)
    for name, (value, _) in found.values.items():
        if already(name, value) and name not in names:
            out.same.append(name)
            continue
        given = {names[name]: value} if name in names else formed(name, value, fields)
        if given is None:
            out.left.append((name, value, answer(name, fields) or "no field of this name is known"))
            continue
        for target, changed in given.items():
            take(out, fields, (name, value), (target, changed))
    for name, (theirs, why, *needed) in vars_of(config_class, "trl_defaults").items():
        if name in out.taken or not all(out.taken.get(other, (False, ""))[0] for other in needed):
            continue
        ours = fields[name].default
        said = "not set" if ours is None else str(ours).lower() if isinstance(ours, bool) else ours
        out.defaults[name] = (theirs, f"TRL's default; here {said}: {why}")
    return out


def formed(name: str, value: Any, fields: Fields) -> Values | None:
    """What a field that isn't one of ours is in ours, as far as that can be said without a person."""
    if name in FORMS:
        made = FORMS[name](value)
        return made if made is None or all(target in fields for target in made) else None
    target, note = RENAMED.get(name, (None, ""))
    return {target: value} if target in fields and not note else None


def take(out: Translated, fields: Fields, source: tuple[str, Any], given: tuple[str, Any]) -> None:
    """Put one of our fields into `out`, or what was given into `left` where its value doesn't fit."""
    (name, value), (target, changed) = source, given
    try:
        fitted = fit(fields[target], changed)
    except Mismatch as error:
        out.left.append((name, value, f"{target}: {error}"))
        return
    comment = "" if name == target and fitted == value else f"{name}: {value}" if fitted != value else f"{name} there"
    if isinstance(fitted, dict) and target in out.taken:
        before, said = out.taken[target]
        fitted, comment = before | fitted, f"{said}; {comment}"
    out.taken[target] = (fitted, comment)
