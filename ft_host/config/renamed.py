"""Names that other tools use for something with another name here, or with none. Errors use them for hints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft_host.config.absent import ABSENT, OF_METHODS

# our field -> its names in TRL, transformers, axolotl, LLaMA-Factory, unsloth, torchtune, and in common use.
CALLED = {
    "model": "model_name model_path model_id base_model pretrained_model_name_or_path model_name_or_dir sft_model_path",
    "model_revision": "revision",
    "dtype": "model_dtype",
    "attn_implementation": "attn attention attn_impl",
    "use_liger_kernel": "use_liger liger liger_kernel",
    "torch_compile": "compile",
    "load_in_4bit": "use_4bit",
    "load_in_8bit": "use_8bit",
    "chat_template_path": "chat_template template",
    "use_peft": "use_lora lora peft adapter peft_config",
    "lora_r": "lora_rank lora_dim peft_lora_r r",
    "lora_alpha": "alpha peft_lora_alpha",
    "lora_target_modules": "target_modules lora_target",
    "lora_modules_to_save": "modules_to_save",
    "dataset": "data data_path dataset_path dataset_id train_dataset train_file train_data datasets dataset_mixture",
    "dataset_config": "dataset_config_name",
    "eval_dataset": "validation_file eval_file eval_data val_dataset validation_dataset test_dataset val_data",
    "dataset_train_split": "split train_split dataset_split",
    "dataset_test_split": "test_split eval_split validation_split dataset_eval_split",
    "dataset_streaming": "streaming",
    "dataset_text_field": "text_field text_column text_key",
    "max_length": "max_seq_length max_seq_len seq_length sequence_len seq_len cutoff_len model_max_length block_size",
    "packing": "sample_packing pack",
    "dataloader_num_workers": "num_proc dataset_num_proc preprocessing_num_workers num_workers workers",
    "per_device_train_batch_size": (
        "per_device_batch_size per_gpu_train_batch_size train_batch_size batch_size "
        "micro_batch_size micro_train_batch_size"
    ),
    "per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": (
        "gradient_accumulation grad_accum grad_accumulation_steps accumulation_steps grad_accumulation"
    ),
    "num_train_epochs": "epochs num_epochs n_epochs train_epochs epoch",
    "max_steps": "steps max_train_steps num_steps num_train_steps training_steps total_steps max_iters",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler scheduler lr_schedule",
    "optim": "optimizer optimiser optimizer_type",
    "max_grad_norm": "gradient_clipping grad_clip clip_grad_norm gradient_clip max_norm clip_grad",
    "seed": "random_seed data_seed",
    "max_completion_length": "max_new_tokens max_tokens response_length",
    "beta": "dpo_beta kto_beta kl_beta kl_coef rl_beta pref_beta",
    "ref_model": (
        "reference_model reference ref_model_path ref_model_name reference_model_path "
        "reference_model_name_or_path ref_pretrain"
    ),
    "precompute_ref_log_probs": "precompute_ref_logps precompute_ref_logprobs precompute_reference_log_probs",
    "loss_type": "dpo_loss_type dpo_loss pref_loss",
    "label_smoothing": "dpo_label_smoothing",
    "use_weighting": "dpo_use_weighting",
    "desirable_weight": "kto_desirable_weight kto_chosen_weight chosen_weight",
    "undesirable_weight": "kto_undesirable_weight kto_rejected_weight rejected_weight",
    "center_rewards_coefficient": "center_rewards_coef center_rewards center_coefficient",
    "reward": (
        "reward_model reward_models reward_function reward_functions reward_func reward_fn reward_model_path "
        "reward_model_name_or_path"
    ),
    "num_generations": (
        "group_size n_samples_per_prompt num_samples_per_prompt rollouts_per_prompt num_return_sequences"
    ),
    "num_iterations": "mu ppo_epochs",
    "normalize_advantages": "normalize_advantage",
    "epsilon": "clip_eps eps_clip clip_range clip_ratio epsilon_low",
    "epsilon_high": "eps_clip_high clip_ratio_high",
    "importance_sampling_clip_max": "vllm_importance_sampling_cap vllm_importance_sampling_clip_max",
    "importance_sampling_clip_min": "vllm_importance_sampling_clip_min",
    "mask_truncated_completions": "overlong_filtering mask_truncated",
    "dynamic_sampling": "dynamic_filtering filter_groups",
    "logged_completions": "log_completions num_completions_to_print",
    "output_dir": "output out out_dir output_path save_dir output_folder",
    "save_total_limit": "keep_checkpoints max_checkpoints",
    "run_name": "exp_name",
    "decode_batch_size": "local_rollout_forward_batch_size",
    "report_to": "logger tracker trackers log_with wandb",
    "num_processes": "nproc_per_node nproc num_gpus gpus n_gpus processes world_size",
    "use_cpu": "no_cuda cpu",
    "gradient_checkpointing": "activation_checkpointing",
}
EVALUATIONS = (
    "eval_steps",
    "for steps; held-out rows are evaluated before and after training anyway, and without eval_dataset never",
)
# Names for which a new name alone would mislead: our field or None, and what to do.
CHANGED = {
    "warmup_ratio": ("warmup_steps", "below 1 it is a share of all steps"),
    "warmup": ("warmup_steps", "below 1 it is a share of all steps"),
    "total_episodes": ("max_steps", "optimizer steps; an episode is a completion"),
    "shuffle_dataset": ("train_sampling_strategy", "random shuffles, sequential keeps the order of the data"),
    "auto_find_batch_size": ("max_tokens_per_micro_batch", "micro-batches of so many tokens fit whatever the rows"),
    "vllm_importance_sampling_mode": ("importance_sampling_correction", "token_truncate, sequence_mask and the others"),
    "group_by_length": ("train_sampling_strategy", "its value group_by_length"),
    "evaluation_strategy": EVALUATIONS,
    "eval_strategy": EVALUATIONS,
    "do_eval": ("eval_dataset", "a run evaluates on it, or on dataset_test_split, if one is set"),
    "save_strategy": ("save_steps", "for steps; 0, as no, writes none but the last; an epoch is a number of steps"),
    "logging_dir": ("output_dir", "what a run logs is in its folder"),
    "logging_strategy": ("logging_steps", "metrics.jsonl has every step anyway"),
    "logging_first_step": ("logging_steps", "metrics.jsonl has every step anyway"),
    "disable_tqdm": ("progress", "bar, lines, json or quiet"),
    "mixed_precision": ("bf16", "or fp16"),
    "precision": ("bf16", "or fp16; dtype is the type of the weights"),
    "use_flash_attention_2": ("segment_attention", "which holds batches without padding apart"),
    "flash_attn": ("segment_attention", "which holds batches without padding apart"),
    "fsdp": ("distributed_strategy", "its value fsdp2"),
    "train_on_inputs": ("completion_only_loss", "with the opposite meaning"),
    "response_template": ("assistant_only_loss", "the turns are found from the chat template"),
    "precompute_ref_batch_size": ("per_device_eval_batch_size", "the rows of every pass without gradient"),
    "force_use_ref_model": ("ref_model", "a folder or hub id of another model"),
    "rpo_alpha": ("loss_weights", "with loss_type [sigmoid, sft], the weight of sft"),
    "pref_ftx": ("loss_weights", "with loss_type [sigmoid, sft], the weight of sft"),
    "nll_loss_coef": ("loss_weights", "with loss_type [sigmoid, sft], the weight of sft"),
    "generate_during_eval": ("eval_reward", "completions are generated for it, and scored"),
    "use_vllm": ("backend", "its value vllm, of the package ft-vllm"),
    "vllm_importance_sampling_correction": ("importance_sampling_correction", "its value none, or how it corrects"),
    "dataset_prompt_column": ("dataset_columns", "columns to rename, {theirs: ours}"),
    "prompt_key": ("dataset_columns", "columns to rename, {theirs: ours}"),
    "chosen_key": ("dataset_columns", "columns to rename, {theirs: ours}"),
    "rejected_key": ("dataset_columns", "columns to rename, {theirs: ours}"),
    "label_key": ("dataset_columns", "columns to rename, {theirs: ours}"),
    "max_prompt_length": ("max_length", "of prompt and completion together; truncation_mode says which end is cut"),
    "max_target_length": ("max_length", "of prompt and completion together; truncation_mode says which end is cut"),
    "deepspeed": ("distributed_strategy", "fsdp2 shards as ZeRO does"),
    "tokenizer": (None, "the tokenizer is the model's; chat_template_path and eos_token change it"),
    "tokenizer_name_or_path": (None, "the tokenizer is the model's; chat_template_path and eos_token change it"),
    "processing_class": (None, "the tokenizer is the model's; chat_template_path and eos_token change it"),
    "pad_token": (None, "not needed, as batches have no padding"),
    "padding_free": (None, "not needed, as batches have no padding"),
    "padding_value": (None, "not needed, as batches have no padding"),
    "label_pad_token_id": (None, "not needed, as batches have no padding"),
    "pad_to_multiple_of": (None, "not needed, as batches have no padding"),
    "use_logits_to_keep": (None, "not needed; logits are made only where a token is predicted"),
    "use_num_logits_to_keep": (None, "not needed; logits are made only where a token is predicted"),
    "model_adapter_name": (None, "not needed; with LoRA the reference is the policy as it was before training"),
    "ref_adapter_name": (None, "not needed; with LoRA the reference is the policy as it was before training"),
    "ref_model_init_kwargs": (None, "not needed; the reference is loaded as the model is"),
    "is_encoder_decoder": (None, "not offered; models with an encoder aren't supported"),
    "rl": (None, "the method is the first argument: `ft-host train METHOD`"),
    "stage": (None, "the method is the first argument: `ft-host train METHOD`"),
    "remove_unused_columns": (None, "not needed; columns that the method doesn't know are left alone"),
    "lora_task_type": (None, "not needed; the method knows it"),
    "do_train": (None, "not needed; train trains"),
    "overwrite_output_dir": (None, "a run never overwrites another; give another output_dir or remove the folder"),
    "gradient_checkpointing_kwargs": (None, "not needed; gradient_checkpointing is all there is to set"),
    "push_to_hub": (None, "not offered; `hf upload` takes the run's model folder"),
    "hub_model_id": (None, "not offered; `hf upload` takes the run's model folder"),
    "config": (None, "give the config file itself: `ft-host train METHOD run.yaml`"),
    "method": (None, "the method is the first argument: `ft-host train METHOD`"),
    "trainer": (None, "the method is the first argument, `ft-host train METHOD`, or method: in the file"),
    "env": (None, "a config doesn't set the environment; set it where ft-host is called"),
}

RENAMED: dict[str, tuple[str | None, str]] = {
    **{name: (None, reason) for name, reason in ABSENT.items()},
    **{old: (new, "") for new, olds in CALLED.items() for old in olds.split()},
    **CHANGED,
}
# Values with which another tool's field says what is done here anyway: such a line is taken.
ALREADY: dict[str, tuple[Any, ...]] = {
    "padding_free": (True, False),
    "remove_unused_columns": (True, False),
    "average_tokens_across_devices": (True,),
    "logging_strategy": ("steps",),
    "logging_first_step": (False,),
    "log_level": ("passive",),
    "lora_bias": ("none",),
    "lora_task_type": ("CAUSAL_LM",),
    "use_liger_loss": (True, False),
    "save_strategy": ("steps",),
    "do_train": (True,),
    "group_by_length": (False,),
    "use_vllm": (False,),
    "ds3_gather_for_generation": (True, False),
    **dict.fromkeys(
        (
            "push_to_hub load_best_model_at_end save_only_model auto_find_batch_size overwrite_output_dir do_predict "
            "full_determinism ignore_data_skip dataloader_drop_last ddp_find_unused_parameters bf16_full_eval "
            "fp16_full_eval use_cache activation_offloading is_encoder_decoder vllm_enable_sleep_mode "
            "use_transformers_paged use_transformers_continuous_batching cast_lm_head_to_fp32"
        ).split(),
        (False,),
    ),
}


def known(name: str) -> str:
    """Return a name as the tables have it: `learningRate`, `Batch-Size` and `batchsize` are written otherwise."""
    return COMPACT.get(compact(name), name)


def compact(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


COMPACT = {compact(name): name for name in (*OF_METHODS, *RENAMED)}


def already(name: str, value: Any) -> bool:
    """Whether another tool's field with this value says what is done here anyway: not set, or a value of `ALREADY`."""
    if value is None:
        return name in RENAMED or name in OF_METHODS
    return any(value is same or (isinstance(same, str) and value == same) for same in ALREADY.get(name, ()))


def hint(name: str, fields: Mapping[str, Any] | set[str], own: Mapping[str, str] | None = None) -> str | None:
    """What a name from elsewhere is here, or why there is nothing of the kind. None for a name that isn't known.

    `own`: the answers of the method itself, or of whatever else has the fields.
    """
    name = known(name)
    if own and name in own:
        return own[name]
    if name in RENAMED:
        target, note = RENAMED[name]
        if target is None:
            return note
        if target in fields:
            return f"here it is {target}" + (f" ({note})" if note else "")
        return f"elsewhere it is what {target} is here, and this method has none"
    if name in OF_METHODS and name not in fields:
        return "other methods have it, and this one doesn't; ft-host train METHOD --help lists its fields"
    return None
