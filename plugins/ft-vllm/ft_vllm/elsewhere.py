"""What other names of fields mean here: TRL's, the engine's, and the run's own."""

OF_ENGINE = "an argument of the engine: server_args of a started server, engine_args with mode: inprocess"
OF_RUN = "a field of the run, beside backend_config"
# What TRL calls these fields, and what is set elsewhere.
ELSEWHERE = {
    "vllm_mode": "here it is mode; TRL's colocate is inprocess",
    "colocate": "here it is mode: inprocess",
    "base_url": "here it is url",
    "server_base_url": "here it is url",
    "vllm_server_base_url": "here it is url",
    "vllm_server_timeout": "here it is start_timeout",
    "max_model_length": "here it is max_model_len",
    "vllm_max_model_length": "here it is max_model_len",
    "vllm_gpu_memory_utilization": "here it is gpu_memory_utilization",
    "vllm_tensor_parallel_size": "here it is tensor_parallel_size",
    "cuda_visible_devices": "here it is devices",
    **dict.fromkeys(
        "swap_space enable_prefix_caching max_num_batched_tokens kv_cache_dtype quantization load_format download_dir "
        "max_lora_rank enable_chunked_prefill cpu_offload_gb pipeline_parallel_size data_parallel_size "
        "model_impl".split(),
        OF_ENGINE,
    ),
    **dict.fromkeys(
        "model temperature top_p top_k min_p repetition_penalty max_completion_length seed trust_remote_code".split(),
        OF_RUN,
    ),
    "max_tokens": "here it is max_completion_length, a field of the run",
}
