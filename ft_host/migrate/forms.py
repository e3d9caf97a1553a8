"""Fields of other tools that are no field here by another name: another value, several fields, or fields that decide
together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ft_host.config.fields import Fields
from ft_host.config.options import OPTIMIZERS
from ft_host.config.values import PATHS, optimizer_hint
from ft_host.migrate.methods import episodes, nll, older_ppo, rewards, server
from ft_host.migrate.sources import Found

Values = dict[str, Any]
LORA = (
    "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora use_dora"
).split()
# Keywords of transformers that load a model or sample, with TRL's names for them.
LOADED = {
    "torch_dtype": "dtype",
    "dtype": "dtype",
    "revision": "model_revision",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
}
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
QUANTISED = ("bnb_4bit_quant_type", "use_bnb_nested_quant")


def only(wanted: Any, values: Values) -> Callable[[Any], Values | None]:
    """For this value these fields; for another one there is nothing."""
    return lambda value: dict(values) if value == wanted else None


def backend(name: str) -> Callable[[Any], Values | None]:
    return lambda value: {"backend_config": {name: value}}


def trackers(value: Any) -> Values:
    return {"report_to": [value] if isinstance(value, str) else value}


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
    "vllm_max_model_len": backend("max_model_len"),
    "vllm_dtype": backend("dtype"),
    "vllm_importance_sampling_correction": only(False, {"importance_sampling_correction": "none"}),
    "vllm_importance_sampling_mode": lambda value: {"importance_sampling_correction": value},
    "shuffle_dataset": lambda value: {"train_sampling_strategy": "random" if value else "sequential"},
    "group_by_length": only(True, {"train_sampling_strategy": "group_by_length"}),
    "precompute_ref_batch_size": lambda value: {"per_device_eval_batch_size": value},
    "precompute_ref_eval_batch_size": lambda value: {"per_device_eval_batch_size": value},
    "kl_penalty": only("kl", {"kl_estimator": "k1"}),
    "deepspeed": lambda value: {"distributed_strategy": "fsdp2"},
    "fsdp": lambda value: {"distributed_strategy": "fsdp2"} if value else {},
    "accelerate_config": lambda value: {"distributed_strategy": "fsdp2"} if "gpu" not in str(value) else {},
    "disable_tqdm": only(True, {"progress": "lines"}),
    "log_with": trackers,
    "rloo_k": lambda value: {"num_generations": value},
    "log_completions": lambda value: {},  # samples.jsonl has them
    "num_completions_to_print": lambda value: {"logged_completions": value},
    "token_level_kl": only(False, {}),
    "optim_args": lambda value: {"optim_args": arguments(value)},
}
# Those whose name is another field's here, for methods that sample nothing.
ELSEWHERE_CUT = "it cut completions there, where max_length is of prompt and completion together"


def arguments(value: Any) -> Any:
    """`a=1,b=0.5`, as transformers has it, as a mapping."""
    from ft_host.config.files import parse_inline

    if not isinstance(value, str) or "=" not in value:
        return value
    pairs = (pair.partition("=") for pair in value.split(","))
    return {name.strip(): parse_inline(text) for name, _, text in pairs}


def together(found: Found, fields: Fields) -> None:
    """Change what was found where fields decide together, so that the others can be taken one by one."""
    spread(found, "model_init_kwargs", LOADED)
    spread(found, "generation_kwargs", {name: name for name in SAMPLED if name in fields})
    adapters(found)
    kernels(found)
    evaluation(found)
    checkpoints(found)
    if found.value("warmup_steps", 0):
        found.without("warmup_ratio", "warmup_steps, which is set too, decides")
    elif found.value("warmup_ratio"):
        found.values.pop("warmup_steps", None)  # 0 there leaves it to the ratio
    if "num_generations" not in fields and "temperature" not in fields:
        found.without("max_completion_length", ELSEWHERE_CUT)
    if "loss_weights" in fields:
        nll(found)
    data(found)
    if "reward" in fields:
        rewards(found)
    server(found)
    if "num_ppo_epochs" in fields:
        older_ppo(found)
        episodes(found)
    elif "num_iterations" in fields:
        found.became("num_ppo_epochs", "num_iterations")
        found.became("cliprange", "epsilon")
        found.without("num_mini_batches", "steps_per_generation is how many optimizer steps a rollout is for")
        found.without("total_episodes", "max_steps is in optimizer steps; an episode is a completion")
    if "max_prompt_length" in found.values:
        found.written["max_prompt_length"] = (
            "max_prompt_length there, which cuts longer prompts; here they are left out"
        )


def spread(found: Found, name: str, names: dict[str, str]) -> None:
    """The items of a mapping that are fields here. The others are left, each by its name."""
    items = found.value(name)
    if not isinstance(items, dict):
        return
    place = found.values.pop(name)[1]
    for key, value in items.items():
        if key in names and names[key] not in found.values:
            found.put(names[key], value, place, f"{name} there")
        else:
            why = "not offered; fields say how a model is loaded, and how it is sampled from"
            found.left.append((f"{name}.{key}", value, why))


def adapters(found: Found) -> None:
    if not found.value("use_peft", False):
        for name in LORA:
            found.without(name, "without use_peft it does nothing there either")
    if not found.value("load_in_4bit", False):
        for name in QUANTISED:
            found.without(name, "without load_in_4bit it does nothing there either")


def kernels(found: Found) -> None:
    """What depends on packages that are installed, and isn't needed or has another name here."""
    attention = str(found.value("attn_implementation", ""))
    if "flash" in attention or "/" in attention:
        found.without("attn_implementation", "not needed; training has an attention of its own (segment_attention)")
    optimizer = found.value("optim", "")
    if optimizer not in OPTIMIZERS and optimizer not in PATHS and ":" not in str(optimizer):
        hint = optimizer_hint(str(optimizer))
        found.without("optim", hint or "not offered; an import path (package.module:Class) is taken")


def evaluation(found: Found) -> None:
    """Whether, on what and how often: `eval_strategy` decides, and a script of TRL's evaluates on the split `test`."""
    strategy = found.value("eval_strategy", found.value("evaluation_strategy", "no"))
    place = "eval_strategy" if "eval_strategy" in found.values else "evaluation_strategy"
    if strategy in ("no", False, "steps"):
        found.values.pop(place, None)
    if strategy in ("no", False):
        why = "it isn't evaluated there, since eval_strategy isn't set"
        for name in ("eval_steps", "dataset_test_split", "eval_dataset", "eval_delay"):
            if found.value(name) is not None:
                found.without(name, why)
        return
    if "do_eval" in found.values:
        found.values.pop("do_eval")
        found.same.append("do_eval")
    if found.command and not {"dataset_test_split", "eval_dataset"} & set(found.values):
        found.put("dataset_test_split", "test", place, "TRL's default")
    if strategy != "steps":
        found.without("eval_steps", f"with {place}: {strategy} it does nothing there either")
    elif found.value("eval_steps") is None:
        steps = found.value("logging_steps", 10)
        found.put("eval_steps", steps, place, f"{place}: steps there, which evaluates every logging_steps")
    if {"dataset_test_split", "eval_dataset"} & set(found.values):
        return
    found.without("eval_steps", "what is evaluated isn't written out; set eval_dataset too")


def checkpoints(found: Found) -> None:
    strategy = found.value("save_strategy", "steps")
    if strategy in ("no", False):
        found.values.pop("save_strategy")
        found.put("save_steps", 0, "save_strategy", "save_strategy: no there")
    elif strategy != "steps":
        found.without("save_steps", f"with save_strategy: {strategy} it does nothing there either")


def data(found: Found) -> None:
    """A mixture: `datasets` of {path, name, data_files, split, columns, fraction}."""
    found.became("streaming", "dataset_streaming")
    mixed = found.value("datasets")
    if not isinstance(mixed, list) or not all(isinstance(each, dict) and "path" in each for each in mixed):
        return
    items, said = [], []
    for number, each in enumerate(mixed):
        item = {key: each[key] for key in ("path", "name", "split", "data_files") if each.get(key) is not None}
        if each.get("fraction") is not None:
            item["weight"] = each["fraction"]
            said.append("weight is fraction there")
        if each.get("data_dir") is not None:
            found.left.append((f"datasets[{number}].data_dir", each["data_dir"], "give its files as data_files"))
        items.append(item)
    found.without("dataset_name", "datasets, which is given too, decides")
    place = found.values.pop("datasets")[1]
    found.put("dataset", items, place, "; ".join(dict.fromkeys(["datasets there", *said])))
