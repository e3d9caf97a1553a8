"""Runs that come from elsewhere, made small enough to be tried: two steps on the CPU, of a tiny model and rows made
here, or of a model that is a folder."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ft_host.config import RolloutConfig, RunConfig
from ft_host.config.fields import fields_of
from ft_host.testing.conformance.rows import rows_of
from ft_host.testing.conformance.subject import Materials
from ft_host.testing.rows import rounds, write_rows
from ft_host.types import Row

STEPS = 2
ROWS = 24
LONGEST = 256  # tokens; a tiny model has 512 places
COMPLETION = 12
# What depends on a machine, on files or on the outside, and what nothing of two steps depends on.
LEFT_OUT = (
    "model_revision trust_remote_code dtype attn_implementation use_liger_kernel torch_compile load_in_8bit "
    "load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant router_aux_loss_coef chat_template_path eos_token "
    "lora_base_model merge_adapter dataset_config dataset_train_split dataset_revision eval_dataset "
    "dataset_test_split dataset_streaming dataset_columns data_window dataloader_num_workers "
    "max_tokens_per_micro_batch num_train_epochs bf16 fp16 eval_steps eval_on_start eval_reward eval_max_rows backend "
    "backend_config decode_batch_size save_steps save_total_limit logging_steps report_to run_name parent_run "
    "resume_from_checkpoint required_plugins num_processes distributed_strategy ddp_timeout reward_kwargs "
    "teacher_model_revision teacher_tokenizer_name_or_path tools environment steps_per_generation "
    "generation_batch_size importance_sampling_correction importance_sampling_clip_max importance_sampling_clip_min"
).split()
REWARDS = '''"""Rewards that anything earns a little of."""


def share(letters):
    def of(completions, **columns):
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        return [sum(letter in letters for letter in text) / (len(text) + 1) for text in texts]

    return of


first, second, third, fourth = share("aeiou"), share("rstln"), share("0123456789"), share("etaoin ")
first.__name__, second.__name__, third.__name__, fourth.__name__ = "first", "second", "third", "fourth"
'''
NAMES = ("first", "second", "third", "fourth")


def small(
    config_class: type[RunConfig], values: dict[str, Any], folder: Path, **changes: Any
) -> tuple[RunConfig, list[str]]:
    """Return a config of `values` that trains two steps on the CPU, its files in `folder`, and the names of the fields
    that were given and aren't as they were. `changes` win.

    A `model` that is a folder stays. Raises ConfigError where what is left can't be trained.
    """
    fields, materials = fields_of(config_class), materials_in(folder)
    kept = {name: value for name, value in values.items() if name not in LEFT_OUT}
    if ":" in str(kept.get("optim", "")) or "_" in str(kept.get("optim", "")):  # of a package that may be absent
        kept.pop("optim")
    made = {
        "model": kept["model"] if is_folder(kept.get("model")) else materials["model"],
        "dataset": str(write_rows(folder / "rows.jsonl", rows_for(config_class, kept))),
        "output_dir": str(folder / "runs"),
        "use_cpu": True,
        "max_steps": STEPS,
        "save_steps": 0,
        "eval_on_start": False,
        "train_sampling_strategy": "sequential",
        "progress": "quiet",
    }
    for name in ("teacher_model_name_or_path", "ref_model", "value_model"):
        if kept.get(name) is not None or fields.get(name) and fields[name].required:
            uld = name.startswith("teacher") and "use_uld_loss" in fields and kept.get("use_uld_loss") is not False
            made[name] = materials["other_teacher" if uld else "teacher"]
    if isinstance(kept.get("max_length"), int):
        made["max_length"] = min(kept["max_length"], LONGEST)
    made |= sizes(config_class, kept)
    if issubclass(config_class, RolloutConfig):
        made["max_completion_length"] = min(kept.get("max_completion_length", COMPLETION), COMPLETION)
        if config_class.needs_reward or kept.get("reward"):
            path = folder / "rewards.py"
            path.write_text(REWARDS, encoding="utf-8")
            made["reward"] = [f"{path}:{name}" for name in NAMES[: len(kept.get("reward") or [1])]]
    config = config_class(**{**kept, **made, **changes})
    return config, sorted(name for name in values if getattr(config, name) != values[name])


def materials_in(folder: Path) -> Materials:
    place = folder / "materials"
    place.mkdir(parents=True, exist_ok=True)
    return Materials(place)


def is_folder(model: str | None) -> bool:
    return bool(model) and Path(str(model)).is_dir()


def sizes(config_class: type[RunConfig], kept: dict[str, Any]) -> dict[str, int]:
    """Batches as they are given, at most four rows a micro-batch and two micro-batches a step."""
    fields = fields_of(config_class)

    def most(name: str, size: int) -> int:
        return min(kept.get(name, fields[name].default), size)

    found = {"gradient_accumulation_steps": most("gradient_accumulation_steps", 2)}
    found["per_device_train_batch_size"] = most("per_device_train_batch_size", 4)
    if "num_generations" in fields:  # whole groups
        found["num_generations"] = most("num_generations", 4)
        group = found["num_generations"]
        found["per_device_train_batch_size"] = group * max(1, 4 // group)
    found |= {
        name: most(name, 2) for name in ("num_mini_batches", "num_ppo_epochs", "num_iterations") if name in fields
    }
    return found


def rows_for(config_class: type[RunConfig], values: dict[str, Any]) -> Iterable[Row]:
    """Rows of the kind that the fields speak of: conversations, completions, texts in a column of another name."""
    fields = fields_of(config_class)
    if values.get("assistant_only_loss") or "lmbda" in fields:
        noise = random.Random(5)
        return [{"messages": rounds(noise, 1, 8)} for _ in range(ROWS)]
    formats = config_class.formats or ("prompt-only",)
    if values.get("completion_only_loss"):
        return rows_of("prompt-completion", ROWS)
    rows = rows_of(formats[0], ROWS)
    column = values.get("dataset_text_field", "text")
    return [{column: row["text"]} for row in rows] if formats[0] == "language modeling" else rows
