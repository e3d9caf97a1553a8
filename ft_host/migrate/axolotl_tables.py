"""Names of axolotl's: those that are other names of TRL's or ours, those that need nothing here, and those that have no
counterpart, with the reason."""

from __future__ import annotations

from typing import Any

# rl: there, method here
METHODS = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "grpo": "grpo", "orpo": "orpo", "simpo": "simpo"}
RENAMED = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "sequence_len": "max_length",
    "max_prompt_len": "max_prompt_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "sample_packing": "packing",
    "dataset_processes": "dataset_num_proc",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "orpo_alpha": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "dpo_use_weighting": "use_weighting",
    "dpo_loss_type": "loss_type",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "wandb_name": "run_name",
    "mlflow_run_name": "run_name",
    "pretraining_sample_concatenation": "packing",
}
# What needs nothing: it is found from the model, done anyway, or says how axolotl itself works.
SAME = (
    "model_type type_of_model tokenizer_type processor_type base_model_config cls_model_config tokenizer_use_fast "
    "tokenizer_legacy tokenizer_save_jinja_files strict save_safetensors dataset_prepared_path dataset_shard_num "
    "dataset_shard_idx skip_prepare_dataset dataset_keep_in_memory shuffle_merged_datasets "
    "eval_sample_packing pad_to_sequence_len batch_flattening multipack_real_batches sample_packing_group_size "
    "sample_packing_bin_size sample_packing_sequentially pretrain_multipack_buffer_size pretrain_multipack_attn "
    "xformers_attention sdp_attention flex_attention flash_attention eager_attention attn_implementation "
    "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flex_attn_compile_kwargs "
    "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_fan_in_fan_out lora_on_cpu unsloth_cross_entropy_loss "
    "unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope is_falcon_derived_model "
    "is_llama_derived_model is_mistral_derived_model is_qwen_derived_model low_cpu_mem_usage "
    "experimental_skip_move_to_device qlora_sharded_model_loading embeddings_skip_upcast is_preprocess "
    "preprocess_iterable total_num_tokens "
    "total_supervised_tokens sample_packing_eff_est axolotl_config_path device ddp liger_rope liger_rms_norm "
    "liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy liger_swiglu cut_cross_entropy "
    "dpo_use_logits_to_keep dpo_padding_free include_tokens_per_second include_tkps debug fsdp_version "
    "fsdp_final_state_dict_type peft_autocast_adapter_dtype use_kernels merge_method ray_num_workers"
).split()
NOT_SAID = (  # false there says what is done here
    "gptq merge_lora use_ray use_pose auto_resume_from_checkpoints do_causal_lm_eval do_bench_eval fp8 tf32 float32 "
    "dataset_exact_deduplication resize_token_embeddings_to_32x shrink_embeddings mean_resizing_embeddings "
    "hf_use_auth_token relora_cpu_offload llama4_linearized_experts lr_quadratic_warmup dataloader_drop_last "
    "wandb_watch wandb_log_model load_best_model_at_end save_only_model auto_find_batch_size group_by_length "
    "remove_unused_columns precompute_ref_log_probs use_wandb use_mlflow use_comet use_tensorboard curriculum_sampling"
).split()
REASONS = {
    "not offered; eval_steps and save_steps count optimizer steps": "evals_per_epoch saves_per_epoch",
    "not offered; gradient_accumulation_steps says how many micro-batches a step has": "batch_size",
    "not offered; one learning rate for all that is trained (optim: package.module:Class may have its own)": (
        "embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio loraplus_lr_embedding"
    ),
    "not offered; a schedule of transformers' is taken": (
        "lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor jagged_restart_steps jagged_restart_warmup_steps "
        "jagged_restart_anneal_steps"
    ),
    "not offered; AdamW has adam_beta1, adam_beta2 and adam_epsilon": "adam_beta3 adam_epsilon2",
    "not offered; an adapter is on whole layers of the names in lora_target_modules": (
        "peft_layers_to_transform peft_layers_pattern peft_layer_replication"
    ),
    "not offered; an adapter begins as peft has it": "peft_init_lora_weights loftq_config",
    "not offered; weights of 4 and 8 bits are bitsandbytes'": (
        "gptq peft bnb_config_kwargs model_quantization_config model_quantization_config_kwargs quantization qat fp8"
    ),
    "not offered; lora_modules_to_save trains whole modules": "peft_trainable_token_indices peft_ensure_weight_tying",
    "not offered; an adapter is trained in one piece": (
        "relora relora_steps relora_warmup_steps relora_anneal_steps relora_prune_ratio relora_prune_method "
        "relora_cpu_offload lisa_n_layers lisa_step_interval lisa_layers_attribute"
    ),
    "here it is merge_adapter": "merge_lora",
    "not offered; all weights are trained, or an adapter": "unfrozen_parameters",
    "not offered; the model's own config is used, which its folder has": (
        "overrides_of_model_config model_config overrides_of_model_kwargs model_kwargs rope_scaling num_labels"
    ),
    "the tokenizer is the model's; chat_template_path and eos_token change it": (
        "tokenizer_config tokenizer_use_mistral_common tokens added_tokens_overrides eot_tokens fix_untrained_tokens"
    ),
    "resize_token_embeddings adds what the tokenizer has more": (
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings"
    ),
    "not offered; a system message is a message of the rows": "default_system_message",
    "not offered; rows are as they are in the data": "dataset_exact_deduplication min_sample_len",
    "not offered; truncation_mode says which end of a longer row is cut": "max_packed_sequence_len",
    "not offered; rows stand by their own": "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks",
    "not offered; a row is on one device": (
        "sequence_parallel_degree context_parallel_size tensor_parallel_size dp_shard_size dp_replicate_size "
        "heads_k_stride ring_attn_func tiled_mlp s2_attention"
    ),
    "not offered; distributed_strategy says how weights are held, and memory is what the device has": (
        "device_map max_memory gpu_memory_limit flash_optimum llama4_linearized_experts"
    ),
    "set by torchrun or num_processes": "world_size",
    "not offered; eval_reward completes held-out prompts and scores them": (
        "eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset "
        "bench_split dpo_generate_during_eval generate_samples num_generation_samples generation_max_new_tokens"
    ),
    "not offered; rules find a loss that leaves its course, and stop_on ends the run": (
        "loss_watchdog_threshold loss_watchdog_patience"
    ),
    "not offered; memory is not handed back between steps": "gc_steps",
    "not offered; perf/* in metrics.jsonl has the times of a step": "profiler_steps profiler_steps_start",
    "here it is ft-host train METHOD --resume": "auto_resume_from_checkpoints",
    "not offered; a tracker reads it from its own environment": (
        "wandb_entity wandb_mode wandb_watch wandb_log_model wandb_run_id mlflow_experiment_name "
        "hf_mlflow_log_artifacts comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode "
        "comet_online comet_experiment_config"
    ),
    "not offered; `hf upload` takes the run's model folder": "push_dataset_to_hub hf_use_auth_token",
    "not offered; chat with the run's model folder by any server": (
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature"
    ),
    "not offered; num_processes and torchrun start the processes": "use_ray ray_run_name resources_per_worker",
    "not offered; loss_type: [sigmoid_norm] is by the length": "dpo_norm_loss",
    "not offered; a plugin of this host is a package (ft-host new)": "torchdistx_path",
    "there is no method that learns from judged steps": "process_reward_model",
    "not offered; numbers are float32 unless bf16 or fp16 is set": "float32",
    "here it is train_sampling_strategy: sequential": "curriculum_sampling",
}
LEFT = {name: reason for reason, names in REASONS.items() for name in names.split()}
# Defaults of axolotl's that are others here, as in RunConfig.trl_defaults.
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "per_device_train_batch_size": (1, "micro_batch_size"),
    "num_train_epochs": (1.0, "num_epochs"),
    "lr_scheduler_type": ("cosine", "lr_scheduler"),
    "warmup_steps": (0.03, "there at most 100 steps"),
}
