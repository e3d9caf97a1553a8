"""What a run of axolotl's is given, by its YAML file, in the names that TRL and this host share. Imports nothing heavy.

What axolotl names otherwise is renamed here; what it has and nobody else is told here with the reason; all else goes
the way of TRL's names, which axolotl passes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ft_host.config.files import read_file
from ft_host.config.resolve import refuse
from ft_host.errors import UsageError
from ft_host.migrate.axolotl_data import data_set, held_out
from ft_host.migrate.axolotl_tables import DEFAULTS, LEFT, METHODS, NOT_SAID, RENAMED, SAME
from ft_host.migrate.sources import Found


def read_axolotl(words: list[str]) -> Found:
    """Read a YAML file of axolotl's. Raises UsageError for what isn't one file or a method that nobody has here,
    ConfigError for a file that can't be read."""
    words = [word for word in words if word not in ("axolotl", "train", "preprocess")]
    if len(words) != 1 or Path(words[0]).suffix not in (".yaml", ".yml"):
        raise UsageError(f"expected one YAML file of axolotl's, found {' '.join(words)[:80]}")
    read = read_file(words[0])
    refuse(read.problems)
    given = {name: value for name, value in read.values.items() if value is not None}
    found = Found(tool="axolotl", command=False, defaults=dict(DEFAULTS))
    found.method = method_of(given, read.where)
    if found.method != "grpo":  # whose prompts aren't cut
        found.defaults["max_length"] = (512, "sequence_len")
    given = {name: value for name, value in given.items() if name not in ("trl", "vllm")} | nested(given)
    for name, value in given.items():
        one(found, name, value, read.where(name) if name in read.values else "trl")
    whole(found, given, words[0])
    return found


def method_of(given: dict[str, Any], where: Any) -> str:
    kind = given.pop("rl", None)
    if given.get("process_reward_model"):
        raise UsageError(f"{where('process_reward_model')}: there is no method that learns from judged steps")
    if given.pop("reward_model", False):
        return "reward"
    if kind is None or kind is False:
        return "sft"
    name = "dpo" if kind is True else str(kind)
    if name not in METHODS:
        raise UsageError(f"{where('rl')}: rl: {kind}: there is no method for it; there are {', '.join(METHODS)}")
    if name in ("ipo", "simpo"):
        given["loss_type"] = name
    return METHODS[name]


def nested(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of `trl:` and `vllm:` by the names that they have there."""
    trl, vllm = given.get("trl") or {}, given.get("vllm") or {}
    names = {"host": "vllm_server_host", "port": "vllm_server_port"}
    found = {name: value for name, value in trl.items() if value is not None}
    return found | {names.get(name, f"vllm_{name}"): value for name, value in vllm.items() if value is not None}


def one(found: Found, name: str, value: Any, place: str) -> None:
    """Take one field, tell why not, or leave it to `whole`."""
    if name in SAME or (value is False and name in NOT_SAID) or value in ("", [], {}):
        found.same.append(name)
    elif name in LEFT and value is not False:
        found.left.append((name, value, LEFT[name]))
    elif name in LEFT:
        found.same.append(name)
    elif name in RENAMED:
        new = RENAMED[name]
        found.put(new, value, place, f"{name} there")
        found.was[new] = name
    elif name not in WHOLE:
        found.take(name, value, place)


# Fields that decide together.
WHOLE = (
    "adapter lora_model_dir lora_target_linear datasets test_datasets pretraining_dataset train_on_inputs val_set_size "
    "special_tokens chat_template chat_template_jinja cosine_min_lr_ratio gradient_checkpointing bf16 fp16 bfloat16 "
    "float16 wandb_project use_wandb use_mlflow mlflow_tracking_uri use_comet use_tensorboard plugins torch_compile "
    "warmup_steps warmup_ratio"
).split()


def whole(found: Found, given: dict[str, Any], path: str) -> None:
    adapter(found, given)
    data_set(found, given)
    held_out(found, given)
    template(found, given)
    rates(found, given)
    numbers(found, given)
    trackers(found, given)
    for name in given.get("plugins", []):
        last = str(name).rpartition(".")[2]
        if "Liger" in last:
            found.put("use_liger_kernel", True, "plugins", f"{last} there")
        elif "CutCrossEntropy" in last:
            found.same.append(last)
        else:
            found.left.append(("plugins", name, "a plugin of axolotl's own"))


def adapter(found: Found, given: dict[str, Any]) -> None:
    kind = given.get("adapter")
    if kind is None or kind == "":
        for name in ("lora_model_dir", "lora_target_linear"):
            if given.get(name):
                found.left.append((name, given[name], "without adapter it does nothing there either"))
        return
    if kind not in ("lora", "qlora"):
        found.left.append(("adapter", kind, "not offered; lora and qlora are use_peft"))
        return
    found.put("use_peft", True, "adapter", f"adapter: {kind} there")
    if kind == "qlora":
        found.put("load_in_4bit", True, "adapter", "adapter: qlora there")
    if given.get("lora_target_linear"):
        if found.value("lora_target_modules"):
            found.without("lora_target_modules", "lora_target_linear, which is set too, takes all linear layers")
        found.put("lora_target_modules", ["all-linear"], "lora_target_linear", "lora_target_linear there")
    if given.get("lora_model_dir"):
        base = found.value("model_name_or_path")
        found.put("model_name_or_path", given["lora_model_dir"], "lora_model_dir", "lora_model_dir there")
        found.put("lora_base_model", base, "base_model", "base_model there")
        for name in [name for name in found.values if name.startswith("lora_") and name != "lora_base_model"]:
            found.without(name, "the adapter that is trained further has its own")


def template(found: Found, given: dict[str, Any]) -> None:
    """The template, and the tokens of the tokenizer."""
    name, text = given.get("chat_template"), given.get("chat_template_jinja")
    if text is not None and str(text).endswith(".jinja"):
        found.put("chat_template_path", text, "chat_template_jinja", "chat_template_jinja there")
    elif text is not None:
        found.left.append(("chat_template_jinja", text, "write it into a .jinja file and give chat_template_path"))
    elif name is not None and str(name).startswith("tokenizer_default"):
        found.same.append("chat_template")
    elif name is not None:
        why = "a template that comes with axolotl; the tokenizer's own is used, or that of chat_template_path"
        found.left.append(("chat_template", name, why))
    for token, value in (given.get("special_tokens") or {}).items():
        if token == "eos_token":
            found.put("eos_token", value, "special_tokens", "special_tokens there")
        else:
            found.left.append((f"special_tokens.{token}", value, "not needed; the tokenizer has its own"))


def rates(found: Found, given: dict[str, Any]) -> None:
    """The schedule: a warmup of its own where none is set, and a cosine that ends above 0."""
    for name in ("warmup_steps", "warmup_ratio"):
        if name in given:
            found.take(name, given[name], name)
    if "warmup_steps" in given or "warmup_ratio" in given:
        found.defaults.pop("warmup_steps")
    least = given.get("cosine_min_lr_ratio")
    if least is not None:
        found.put("lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio", "cosine_min_lr_ratio there")
        found.put("lr_scheduler_kwargs", {"min_lr_rate": least}, "cosine_min_lr_ratio", "cosine_min_lr_ratio there")


def numbers(found: Found, given: dict[str, Any]) -> None:
    """Types of numbers, and what makes a step smaller or faster."""
    for name in ("bf16", "fp16"):
        if given.get(name) in ("auto", "full"):
            found.same.append(name)  # where the hardware has it
        elif name in given:
            found.take(name, given[name], name)
    for name in ("bfloat16", "float16"):
        if given.get(name):
            found.put("dtype", name, name, f"{name}: true there")
    checkpointing = given.get("gradient_checkpointing")
    if isinstance(checkpointing, str):
        found.put("gradient_checkpointing", True, "gradient_checkpointing", f"{checkpointing} there")
    elif checkpointing is not None:
        found.take("gradient_checkpointing", checkpointing, "gradient_checkpointing")
    if given.get("torch_compile") not in (None, "auto"):
        found.take("torch_compile", given["torch_compile"], "torch_compile")
    elif "torch_compile" in given:
        found.same.append("torch_compile")


def trackers(found: Found, given: dict[str, Any]) -> None:
    named = {
        "wandb": given.get("wandb_project") or given.get("use_wandb"),
        "mlflow": given.get("mlflow_tracking_uri") or given.get("use_mlflow"),
        "comet_ml": given.get("use_comet"),
        "tensorboard": given.get("use_tensorboard"),
    }
    chosen = [name for name, asked in named.items() if asked]
    if chosen:
        found.put("report_to", chosen, "trackers", "trackers there")
    if given.get("wandb_project"):
        found.left.append(("wandb_project", given["wandb_project"], "set WANDB_PROJECT in the environment"))
