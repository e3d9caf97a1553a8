"""Fields of TRL, transformers and vLLM that have no counterpart here, by the reason why. Errors use them as answers."""

from __future__ import annotations

LIBRARY = "not offered; {} is all there is to set"
BACKEND = "a field of the backend vllm (package ft-vllm): backend: vllm, and {} in backend_config"
ENGINE = "an argument of the engine (package ft-vllm): backend: vllm, and in backend_config server_args or engine_args"
DISPLAY = "not offered; samples.jsonl and the report show completions with their rewards (logged_completions)"
BEST = "not offered; each checkpoint has a model folder that loads by itself, and metrics.jsonl says which was best"
EVALUATION = "not needed; evaluation adds up sums and keeps no predictions"
LOADER = "not needed; rows are prepared as steps come up, and dataloader_num_workers does it in advance"
DDP = "not offered; DDP runs with torch's own settings"
HUB = "not offered; `hf upload` takes the run's model folder"
TRACKIO = "not offered; trackio reads its environment variables (TRACKIO_SPACE_ID and others)"

REASONS = {
    # -- the model
    "not offered; dtype, attn_implementation, model_revision and load_in_4bit are fields of their own": (
        "model_init_kwargs"
    ),
    "not offered; the teacher is loaded as the model is": "teacher_model_init_kwargs",
    "not offered; the head's softmax and sums are in float32 anyway, its product is in the type of the run": (
        "cast_lm_head_to_fp32"
    ),
    "not offered; gradient_checkpointing and max_tokens_per_micro_batch make a step take less memory": (
        "activation_offloading offload_activations"
    ),
    "not offered; biases aren't trained with an adapter": "lora_bias peft_lora_bias",
    "not needed; the loss is made in tiles, without whole rows of logits": "use_liger_loss use_cce",
    "not offered; a system message is a message of the rows (messages, or a conversational prompt)": (
        "system_prompt system_message default_system"
    ),
    "not needed; the storage of 4-bit weights is bitsandbytes' own": "bnb_4bit_quant_storage",
    "not needed; no model that is loaded here has such buffers": "ignore_bias_buffers",
    LIBRARY.format("gradient_checkpointing"): "activation_checkpointing_kwargs",
    LIBRARY.format("torch_compile"): "torch_compile_backend torch_compile_mode",
    LIBRARY.format("use_liger_kernel"): "liger_kernel_config",
    "not needed; there is no cache in training, and always one in generation": "use_cache",
    # -- data
    "not needed; rows are prepared as they are met, and rows with input_ids are taken as they are": "dataset_kwargs",
    "not needed; evaluation doesn't depend on how rows are laid out": "eval_packing",
    "not offered; the last step of an epoch is smaller, and its loss is divided by what it has": "dataloader_drop_last",
    LOADER: (
        "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_in_order "
        "dataloader_multiprocessing_context"
    ),
    "not offered; dataset_test_split, or eval_dataset, says what is held out": "test_split_size",
    "not needed; lengths are those of the tokens": "length_column_name",
    "not needed; the method knows its labels": "label_names",
    # -- the step
    "not needed; a loss is divided by counts of the whole step, over all devices": "average_tokens_across_devices",
    "not needed; a loss or norm that isn't finite ends the run before the update": "logging_nan_inf_filter",
    "not needed; num_tokens is in every line of metrics.jsonl": "include_num_input_tokens_seen",
    "not needed; evaluation computes in the type of training": "bf16_full_eval fp16_full_eval",
    "not offered; bf16 is the faster type; torch reads TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 from the environment": "tf32",
    "not offered; PYTORCH_ALLOC_CONF=expandable_segments:True keeps memory whole": "torch_empty_cache_steps",
    "not offered; an optimizer of your own (optim: package.module:Class) may choose its parameters": (
        "optim_target_modules"
    ),
    "not offered; seed determines order, dropout, sampling and new weights": "full_determinism",
    # -- older TRL: PPO up to 0.11, SFT with a packed data set of its own
    "not offered; the penalty is the log-ratio (kl there) or its k3 estimate (kl_estimator)": "kl_penalty",
    "not offered; the penalty is of a whole completion": "token_level_kl",
    "not offered; kl_coef stays as it is set": "adap_kl_ctrl target horizon",
    "not offered; stop_on ends a run at a finding, and rules look at the divergence": "early_stopping target_kl",
    "not offered; a reward function scales and clips its own values": (
        "use_score_scaling use_score_norm score_clip normalize_reward"
    ),
    "not offered; a ratio is clipped by cliprange, and a finding tells what is far off": "ratio_threshold",
    "not needed; it says nothing but what a tracker shows": "query_dataset task_name compare_steps",
    "not offered; run_name is all that a tracker is told": (
        "tracker_project_name tracker_kwargs accelerator_kwargs project_kwargs"
    ),
    "not a setting; it follows from the other sizes": (
        "world_size num_total_batches local_batch_size local_mini_batch_size"
    ),
    "not needed; rows of a pass go by per_device_train_batch_size, or by max_tokens_per_micro_batch": (
        "backward_batch_size forward_batch_size mini_batch_size"
    ),
    "not needed; memory is not handed back between steps": "optimize_cuda_cache optimize_device_cache",
    "not needed; use_peft, or the folder of an adapter as model, says it": "is_peft_model",
    "not needed; the parts of a model are found": "base_model_attribute_name",
    "not needed; rows are prepared as they are met, one by one": "dataset_batch_size num_of_sequences infinite",
    "not needed; packing counts tokens": "chars_per_token",
    "not offered; rows are text, messages, or prompt and completion (dataset_columns renames); write them so": (
        "formatting_func"
    ),
    # -- sampling
    "not needed; evaluation completes each prompt once": "num_generations_eval",
    "not offered; temperature, top_p, top_k, min_p, repetition_penalty and max_completion_length are fields": (
        "generation_kwargs"
    ),
    "not needed; the backend has a key-value cache of its own": "cache_implementation",
    "not needed; the backend batches by itself (decode_batch_size); backend: vllm is the faster one": (
        "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged"
    ),
    "not offered; a distribution is cut by temperature, top_p, top_k and min_p": (
        "presence_penalty frequency_penalty logit_bias"
    ),
    # -- vLLM
    BACKEND.format("mode (inprocess is TRL's colocate)"): "vllm_mode",
    BACKEND.format("url, the address of a server that runs,"): (
        "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_url"
    ),
    BACKEND.format("start_timeout"): "vllm_server_timeout",
    BACKEND.format("gpu_memory_utilization"): "gpu_memory_utilization vllm_gpu_memory_utilization vllm_gpu_util",
    BACKEND.format("tensor_parallel_size"): "tensor_parallel_size vllm_tensor_parallel_size tensor_parallel",
    BACKEND.format("max_model_len"): "max_model_len vllm_max_model_length vllm_max_model_len",
    BACKEND.format("enforce_eager"): "enforce_eager vllm_enforce_eager",
    BACKEND.format("max_num_seqs"): "max_num_seqs vllm_max_num_seqs",
    BACKEND.format("devices"): "vllm_device vllm_devices",
    BACKEND.format("dtype"): "vllm_dtype",
    BACKEND.format("teacher_url"): "teacher_model_server_url use_teacher_server",
    "not needed; a free port is found for the transfer of weights": "vllm_group_port",
    "not offered; the engine gets the weights before each rollout after an update": "vllm_sync_frequency",
    "not offered; an engine within the trainer's process keeps its memory (gpu_memory_utilization in backend_config)": (
        "vllm_enable_sleep_mode enable_sleep_mode"
    ),
    "not offered; completions aren't constrained": (
        "vllm_structured_outputs_regex vllm_guided_decoding_regex guided_decoding structured_outputs"
    ),
    ENGINE: (
        "vllm_model_impl model_impl vllm_enable_prefix_caching enable_prefix_caching max_num_batched_tokens swap_space "
        "cpu_offload_gb kv_cache_dtype quantization enable_chunked_prefill pipeline_parallel_size data_parallel_size "
        "load_format download_dir max_lora_rank enable_lora served_model_name disable_log_stats block_size_tokens "
        "limit_mm_per_prompt max_seq_len_to_capture speculative_config compilation_config enable_expert_parallel "
        "tokenizer_mode distributed_executor_backend disable_custom_all_reduce hf_overrides"
    ),
    # -- logs, evaluation, checkpoints
    DISPLAY: (
        "log_multimodal log_unique_prompts wandb_log_unique_prompts log_completions_hub_repo log_completions_steps "
        "num_sample_generations"
    ),
    "not needed; diagnostics are rules, which rules_select and rules_ignore choose from": (
        "diagnostics_warning_interval diagnostics_flat_tolerance"
    ),
    "not offered; a plugin's hooks are called where a callback would be (docs/hooks.md)": "callbacks",
    "not needed; metrics.jsonl is written once, by the main process": "log_on_each_node save_on_each_node",
    "not offered; progress says what is printed": "log_level log_level_replica log_level_main",
    "not offered; run_name is the run's, and a tracker reads its project from its own environment": (
        "project wandb_project wandb_entity"
    ),
    TRACKIO: "trackio_space_id trackio_bucket_id trackio_static_space_id",
    "not offered; eval_on_start: false leaves the first evaluation out": "eval_delay",
    EVALUATION: (
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
        "include_for_metrics batch_eval_metrics compute_metrics"
    ),
    BEST: "load_best_model_at_end metric_for_best_model greater_is_better early_stopping_patience",
    "not offered; a checkpoint has all that a resumed run needs, and its model folder loads by itself": (
        "save_only_model"
    ),
    "not needed; SIGTERM and SIGINT save the state": "enable_jit_checkpoint",
    "not needed; a resumed run goes on with the next row": "ignore_data_skip",
    "not needed; the state of a run is in its checkpoints": "restore_callback_states_from_checkpoint",
    HUB: "hub_token hub_private_repo hub_strategy hub_always_push hub_revision push_to_hub_model_id",
    "not needed; every line of metrics.jsonl has the memory (perf/memory_mb)": "skip_memory_metrics",
    "not offered; a wrong number is a finding (docs/diagnostics.md)": "debug",
    "not offered; `ft-host train` trains, and eval_reward completes held-out prompts": "do_predict",
    # -- distribution
    "not offered; distributed_strategy, num_processes and use_cpu are what a run sets": (
        "accelerator_config parallelism_config fsdp_config fsdp_transformer_layer_cls_to_wrap"
    ),
    "of DeepSpeed, which isn't used; distributed_strategy: fsdp2 shards as ZeRO does": "ds3_gather_for_generation",
    "not needed; a trained weight without a gradient is an error": "ddp_find_unused_parameters",
    DDP: "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph",
    "not offered; nccl between GPUs, gloo between CPUs": "ddp_backend",
    "set by torchrun, accelerate launch or num_processes": "local_rank",
}
ABSENT = {name: reason for reason, names in REASONS.items() for name in names.split()}

# Fields that some methods have and others don't, whatever they are called elsewhere.
OF_METHODS = (
    "beta loss_type loss_weights label_smoothing ref_model sync_ref_model ref_model_mixup_alpha ref_model_sync_steps "
    "precompute_ref_log_probs use_weighting reference_free f_divergence_type f_alpha_divergence_coef ld_alpha "
    "discopop_tau desirable_weight undesirable_weight center_rewards_coefficient completion_only_loss "
    "assistant_only_loss dataset_text_field num_generations steps_per_generation generation_batch_size num_iterations "
    "epsilon epsilon_high delta scale_rewards reward reward_funcs reward_weights mask_truncated_completions "
    "top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
    "entropy_target importance_sampling_level multi_objective_aggregation off_policy_mask_threshold "
    "use_bias_correction_kl sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg "
    "vespo_lambda_neg normalize_advantages reward_clip_range temperature top_p top_k min_p repetition_penalty "
    "chat_template_kwargs tools environment max_tool_calling_iterations lmbda seq_kd teacher_model_name_or_path "
    "teacher_model_revision teacher_tokenizer_name_or_path use_uld_loss use_extended_uld uld_token_merge_strategy "
    "uld_use_hybrid_loss uld_hybrid_matched_weight uld_hybrid_unmatched_weight uld_crossentropy_weight "
    "uld_distillation_weight uld_student_temperature uld_teacher_temperature uld_skip_student_eos uld_skip_teacher_eos "
    "generate_from_teacher teacher_prompt_template teacher_model_kind teacher_update_rate teacher_sync_steps "
    "distillation_mode distillation_alpha distillation_topk distillation_add_tail distillation_is_clip "
    "distillation_weight num_loss_tokens_to_skip use_successful_as_teacher success_reward_threshold "
    "dont_reprompt_on_self_success remove_thinking_from_demonstration include_environment_feedback "
    "environment_feedback_only_without_solution reprompt_template solution_template feedback_template "
    "max_reprompt_len kl_coef kl_estimator vf_coef cliprange cliprange_value gamma lam whiten_rewards value_model "
    "missing_eos_penalty stop_token stop_token_id num_ppo_epochs num_mini_batches label_smoothing_factor "
    "max_prompt_length cpo_alpha simpo_gamma"
).split()
