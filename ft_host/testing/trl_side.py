"""The trainer of TRL's that does what a migrated run does, with what a check sets on both sides. Only a check and tests
need TRL."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import typing
from pathlib import Path
from typing import Any

from ft_host.config import RunConfig
from ft_host.testing.backends import fixed_completion
from ft_host.testing.moved import NAMES
from ft_host.testing.parity import trl_model, trl_rows

CLASSES = {
    "sft": "trl:SFT",
    "dpo": "trl:DPO",
    "kto": "trl:KTO",
    "reward": "trl:Reward",
    "grpo": "trl:GRPO",
    "rloo": "trl:RLOO",
    "distill": "trl:Distillation",
    "gkd": "trl.experimental.gkd:GKD",
    "gold": "trl.experimental.gold:GOLD",
    "orpo": "trl.experimental.orpo:ORPO",
    "simpo": "trl.experimental.cpo:CPO",
}
SAMPLED = ("grpo", "rloo", "distill")
# What a check sets otherwise on both sides, where it is set at all: chance, and lengths that say another thing there.
WITHOUT_CHANCE: dict[str, Any] = {"neftune_noise_alpha": None, "lmbda": 0.0, "seq_kd": False}
# Names of TRL that a check doesn't pass on: machines, files, logs, evaluation.
UNTOLD = (
    "output_dir max_steps num_train_epochs report_to run_name seed data_seed bf16 fp16 tf32 use_cpu "
    "gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode "
    "deepspeed fsdp fsdp_config "
    "model_init_kwargs teacher_model_init_kwargs teacher_model_name_or_path teacher_model_revision trust_remote_code "
    "teacher_tokenizer_name_or_path resume_from_checkpoint remove_unused_columns load_best_model_at_end "
    "metric_for_best_model greater_is_better padding_free pad_to_multiple_of pad_token eos_token chat_template_path "
    "do_train do_eval do_predict disable_tqdm use_liger_kernel activation_offloading auto_find_batch_size optim "
    "ddp_timeout local_rank generation_batch_size steps_per_generation max_length use_vllm cache_implementation "
    "use_transformers_paged use_transformers_continuous_batching num_completions_to_print shuffle_dataset "
    "train_sampling_strategy router_aux_loss_coef warmup_ratio average_tokens_across_devices push_to_hub dataset_kwargs"
).split()
BEGINNINGS = ("eval_", "save_", "logging_", "hub_", "dataloader_", "vllm_", "log_", "dataset_", "trackio_", "include_")
SHRUNK = {
    "per_device_train_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_generations": "num_generations",
    "num_iterations": "num_iterations",
    "max_completion_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
}


def arguments(theirs: type, config: RunConfig, given: dict[str, Any]) -> dict[str, Any]:
    """What TRL's config is given: what the source has, and the sizes of the small run."""
    hints, names = typing.get_type_hints(theirs), {field.name for field in dataclasses.fields(theirs)}
    told = {
        name: [value] if isinstance(value, str) and "list[str]" in str(hints[name]) else value
        for name, value in given.items()
        if name in names and name not in UNTOLD and not name.startswith(BEGINNINGS)
    }
    if given.get("warmup_ratio") and not told.get("warmup_steps"):
        told["warmup_steps"] = given["warmup_ratio"]
    ours = dataclasses.asdict(config)
    told |= {name: ours[ours_is] for name, ours_is in SHRUNK.items() if name in names and ours_is in ours}
    if "max_length" in names:
        told["max_length"] = config.max_length
    told |= {name: value for name, value in WITHOUT_CHANCE.items() if name in names}
    fixed = {
        "output_dir": str(Path(config.output_dir) / "trl"),
        "max_steps": config.max_steps,
        "seed": config.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "shuffle_dataset": False,
    }
    return told | {name: value for name, value in fixed.items() if name in names}


def trainer_of(method: str, config: RunConfig, given: dict[str, Any], folder: Path) -> Any:
    """TRL's trainer of the run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module, _, name = CLASSES[method].partition(":")
    room = importlib.import_module(module)
    made = getattr(room, f"{name}Config")
    trainer = getattr(room, f"{name}Trainer")
    ours = dataclasses.asdict(config)
    side = {"padding_side": "left"} if method in SAMPLED or "lmbda" in ours else {}
    more: dict[str, Any] = {}
    if method in SAMPLED:
        trainer = answering(trainer, config)
    if method == "gold":
        trainer = in_order(trainer)
    if method in ("grpo", "rloo"):
        more["reward_funcs"] = rewards(folder / "rewards.py", len(ours["reward"]))
    if ours.get("teacher_model_name_or_path"):
        more["teacher_model"] = AutoModelForCausalLM.from_pretrained(ours["teacher_model_name_or_path"])
    if method == "dpo" and ours["ref_model"]:
        more["ref_model"] = AutoModelForCausalLM.from_pretrained(ours["ref_model"])
    tokenizer = AutoTokenizer.from_pretrained(config.model, **side)
    if method in ("orpo", "simpo"):
        tokenizer.bos_token = None  # TRL puts it before prompts that the tokenizer itself doesn't begin with it
    told = arguments(made, config, given)
    if "teacher_tokenizer_name_or_path" in {field.name for field in dataclasses.fields(made)}:
        told["teacher_tokenizer_name_or_path"] = ours["teacher_model_name_or_path"]
    return trainer(
        model=trl_model(config, "SEQ_CLS" if method == "reward" else "CAUSAL_LM"),
        args=made(**told),
        train_dataset=trl_rows(str(config.dataset)),
        processing_class=tokenizer,
        **more,
    )


def answering(trainer: type, config: RunConfig) -> type:
    """TRL's trainer with the completions that ours gets (`ft_host.testing.fixed`)."""

    class Answering(trainer):  # type: ignore[misc, valid-type]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            tokenizer = self.processing_class
            found = [
                fixed_completion(tokenizer.decode(ids), place % 6, tokenizer.eos_token_id)
                for place, ids in enumerate(prompt_ids)
            ]
            found = [ids[: config.max_completion_length] for ids in found]
            return (found, None) if trainer.__name__ == "GRPOTrainer" else found

    return Answering


def in_order(trainer: type) -> type:
    """TRL's trainer of GOLD with the rows in their order: it has no field for that."""
    from trl.trainer.utils import RepeatSampler

    class InOrder(trainer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            times = self.args.gradient_accumulation_steps
            size = self.args.per_device_train_batch_size * times
            return RepeatSampler(self.train_dataset, 1, batch_size=size, repeat_count=times, shuffle=False)

    return InOrder


def rewards(path: Path, count: int) -> list[Any]:
    spec = importlib.util.spec_from_file_location("rewards_of_the_check", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [getattr(module, name) for name in NAMES[:count]]
