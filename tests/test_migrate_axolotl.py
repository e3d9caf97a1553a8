"""axolotl's YAML files as run files of ours."""

from __future__ import annotations

import pytest
import yaml

from ft_host import registry
from ft_host.cli import main
from ft_host.errors import UsageError
from ft_host.migrate import read_axolotl, translate
from ft_host.migrate.translate import UNKNOWN, Translated

LORA = """
base_model: NousResearch/Llama-3.2-1B
model_type: AutoModelForCausalLM
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: qlora
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [gate_proj, down_proj]
lora_target_linear: true
wandb_project: mine
wandb_name: first
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
learning_rate: 2e-4
bf16: auto
tf32: false
gradient_checkpointing: unsloth
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
plugins: [axolotl.integrations.liger.LigerPlugin, my.Plugin]
"""
DPO = """
base_model: meta-llama/Meta-Llama-3-8B-Instruct
rl: dpo
rl_beta: 0.3
chat_template: llama3
datasets:
  - path: fozziethebeat/alpaca_messages_2k_dpo_test
    type: chat_template.default
    field_messages: conversation
    field_chosen: chosen
    field_rejected: rejected
test_datasets:
  - path: org/held
    split: test
eval_steps: 20
sequence_len: 4096
micro_batch_size: 4
num_epochs: 4
learning_rate: 0.0002
optimizer: adamw_bnb_8bit
deepspeed: zero3.json
"""
KTO = """
base_model: org/m
rl: kto
remove_unused_columns: false
kto_desirable_weight: 0.2
kto_undesirable_weight: 1.0
rl_beta: 0.1
datasets:
  - path: argilla/ultrafeedback-binarized-preferences-cleaned-kto
    type: llama3.ultra
    split: train
max_prompt_len: 256
learning_rate: 1e-5
micro_batch_size: 4
"""
REWARD = """
base_model: google/gemma-2-2b
reward_model: true
chat_template: tokenizer_default
center_rewards_coefficient: 0.01
datasets:
  - path: argilla/distilabel-intel-orca-dpo-pairs
    type: chat_template.default
learning_rate: 0.0002
micro_batch_size: 2
warmup_steps: 10
"""
GRPO = """
base_model: Qwen/Qwen2.5-1.5B-Instruct
rl: grpo
trl:
  beta: 0.001
  max_completion_length: 256
  use_vllm: true
  vllm_server_host: 10.0.0.2
  vllm_server_port: 8005
  reward_funcs: [rewards.length]
  reward_weights: [1.0]
  num_generations: 4
vllm:
  tensor_parallel_size: 2
  gpu_memory_utilization: 0.85
datasets:
  - path: openai/gsm8k
    name: main
    type: rewards.oai_gsm8k_transform
learning_rate: 1.0e-6
micro_batch_size: 4
max_steps: 100
"""
CHATS = """
base_model: org/m
datasets:
  - {path: org/a, type: chat_template, field_messages: conversations, roles_to_train: [assistant], train_on_eos: turn}
  - {path: org/b, type: chat_template, message_property_mappings: {role: speaker, content: said}}
pretraining_dataset:
train_on_inputs: false
learning_rate: 1e-5
micro_batch_size: 2
"""


def migrated(text: str, tmp_path) -> tuple[dict, Translated]:
    (tmp_path / "config.yml").write_text(text)
    found = read_axolotl([str(tmp_path / "config.yml")])
    config_class = registry.config_class(found.method)
    made = translate(found, config_class)
    config_class(**made.values).check()
    assert UNKNOWN not in [why for *_, why in made.left]
    return made.values | {"method": found.method}, made


def test_an_adapter_of_four_bits(tmp_path):
    values, made = migrated(LORA, tmp_path)
    assert values == {
        "method": "sft", "model": "NousResearch/Llama-3.2-1B", "load_in_8bit": False,
        "load_in_4bit": True, "output_dir": "./outputs/lora-out",
        "max_length": 2048, "packing": True, "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05, "run_name": "first",
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "num_train_epochs": 1.0,
        "optim": "adamw_8bit", "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "learning_rate": 2e-4, "weight_decay": 0.0, "use_peft": True, "lora_target_modules": ["all-linear"],
        "dataset": "teknium/GPT4-LLM-Cleaned", "warmup_steps": 0.1, "gradient_checkpointing": True,
        "report_to": ["wandb"], "use_liger_kernel": True,
    }  # fmt: skip
    assert {name for name, *_ in made.left} == {
        "lora_target_modules", "evals_per_epoch", "saves_per_epoch", "val_set_size", "special_tokens.pad_token",
        "wandb_project", "plugins",
    }  # fmt: skip
    assert {"flash_attention", "strict", "bf16", "train_on_inputs", "tf32"} <= set(made.same)
    assert made.taken["max_length"][1] == "sequence_len there"


def test_preferences_with_columns_of_their_own(tmp_path):
    values, made = migrated(DPO, tmp_path)
    assert values["method"] == "dpo" and values["beta"] == 0.3 and values["distributed_strategy"] == "fsdp2"
    assert values["dataset_columns"] == {"conversation": "prompt"}
    assert values["eval_dataset"] == {"path": "org/held", "split": "test"} and values["eval_steps"] == 20
    assert values["warmup_steps"] == 0.03 and values["lr_scheduler_type"] == "cosine"  # axolotl's own defaults
    assert "per_device_train_batch_size" not in made.defaults  # which was given
    assert [name for name, *_ in made.left] == ["chat_template"]


def test_judged_completions(tmp_path):
    values, made = migrated(KTO, tmp_path)
    assert (values["method"], values["beta"], values["desirable_weight"]) == ("kto", 0.1, 0.2)
    assert values["train_sampling_strategy"] == "sequential"  # TRL's trainer trains there
    assert values["max_length"] == 512 and values["num_train_epochs"] == 1.0
    assert {name for name, *_ in made.left} == {"datasets[0].type", "max_prompt_len"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rl: orpo\norpo_alpha: 0.2\n", {"method": "orpo", "beta": 0.2}),
        ("rl: simpo\nsimpo_gamma: 0.5\nrl_beta: 2.0\n", {"method": "simpo", "beta": 2.0, "loss_type": "simpo"}),
        ("rl: ipo\n", {"method": "dpo", "loss_type": "ipo"}),
    ],
)
def test_other_preferences(text, said, tmp_path):
    values, _ = migrated(f"base_model: m\ndatasets: [{{path: org/pairs, type: chat_template}}]\n{text}", tmp_path)
    assert {name: values[name] for name in said} == said


def test_a_reward_model(tmp_path):
    values, made = migrated(REWARD, tmp_path)
    assert values["method"] == "reward" and values["center_rewards_coefficient"] == 0.01
    assert values["warmup_steps"] == 10 and made.left == [] and "chat_template" in made.same


def test_rollouts_on_a_server(tmp_path):
    values, made = migrated(GRPO, tmp_path)
    assert values["method"] == "grpo" and values["reward"] == ["rewards:length"] and values["dataset_config"] == "main"
    assert values["backend_config"] == {
        "url": "http://10.0.0.2:8005", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.85
    }  # fmt: skip
    assert values["max_length"] is None and values["disable_dropout"] is False  # TRL's, which trains there
    assert [name for name, *_ in made.left] == ["datasets[0].type"]


def test_conversations_of_several_data_sets(tmp_path):
    values, made = migrated(CHATS, tmp_path)
    assert values["dataset"] == [{"path": "org/a"}, {"path": "org/b"}]
    assert values["dataset_columns"] == {"conversations": "messages"} and values["assistant_only_loss"] is True
    assert [name for name, *_ in made.left] == ["datasets[1].message_property_mappings"]


def test_the_command(tmp_path, capsys):
    (tmp_path / "config.yml").write_text(LORA)
    assert main(["migrate", "--from", "axolotl", str(tmp_path / "config.yml")]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["method"] == "sft"
    assert "# Without a counterpart." in text and "(eval_steps" not in text.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: m\nprocess_reward_model: true\n", "no method that learns from judged steps"),
        ("base_model: m\nrl: ebft\n", "rl: ebft: there is no method for it; there are dpo"),
        ("- a list\n", "expected fields"),
    ],
)
def test_what_cannot_be_moved_is_refused(text, said, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_axolotl([str(tmp_path / "config.yml")])


# Fields of axolotl's configuration, from its schema.
FIELDS = """
resume_from_checkpoint auto_resume_from_checkpoints resize_token_embeddings_to_32x mean_resizing_embeddings
shrink_embeddings embeddings_skip_upcast qat quantization num_labels dpo_use_weighting dpo_use_logits_to_keep
shuffle_merged_datasets dataset_prepared_path dataset_shard_num dataset_shard_idx skip_prepare_dataset dataset_processes
dataset_exact_deduplication dataset_keep_in_memory dataloader_pin_memory dataloader_num_workers
dataloader_prefetch_factor dataloader_drop_last accelerator_config remove_unused_columns push_dataset_to_hub
hf_use_auth_token device device_map world_size local_rank ddp seed ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers
ddp_find_unused_parameters eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval
bench_dataset bench_split metric_for_best_model greater_is_better loss_watchdog_threshold loss_watchdog_patience
gc_steps bf16 fp16 fp8 bfloat16 float16 tf32 float32 gradient_checkpointing gradient_checkpointing_kwargs
unfrozen_parameters sequence_len min_sample_len max_prompt_len sample_packing sample_packing_group_size
sample_packing_bin_size sample_packing_sequentially eval_sample_packing pad_to_sequence_len curriculum_sampling
multipack_real_batches pretraining_sample_concatenation batch_flattening use_pose pose_split_on_token_ids
pose_max_context_len pose_num_chunks pretrain_multipack_buffer_size pretrain_multipack_attn xformers_attention
sdp_attention s2_attention flex_attention flex_attn_compile_kwargs flash_attention flash_attn_cross_entropy
flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum eager_attention unsloth_cross_entropy_loss
unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm unsloth_rope lora_mlp_kernel lora_qkv_kernel
lora_o_kernel llama4_linearized_experts deepspeed fsdp fsdp_config fsdp_final_state_dict_type val_set_size
sequence_parallel_degree heads_k_stride ring_attn_func special_tokens tokens added_tokens_overrides torch_compile
torch_compile_backend torch_compile_mode max_steps warmup_steps warmup_ratio eval_steps evals_per_epoch eval_strategy
save_steps saves_per_epoch save_strategy save_total_limit logging_steps early_stopping_patience load_best_model_at_end
save_only_model use_tensorboard profiler_steps include_tokens_per_second neftune_noise_alpha rpo_alpha max_memory
gpu_memory_limit low_cpu_mem_usage chat_template chat_template_jinja eot_tokens default_system_message
fix_untrained_tokens is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens
sample_packing_eff_est axolotl_config_path is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
is_qwen_derived_model plugins gradient_accumulation_steps micro_batch_size batch_size eval_batch_size
auto_find_batch_size train_on_inputs group_by_length learning_rate embedding_lr embedding_lr_scale weight_decay
optimizer optim_args optim_target_modules torchdistx_path lr_scheduler lr_scheduler_kwargs lr_quadratic_warmup
cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor lr_groups adam_epsilon adam_epsilon2 adam_beta1 adam_beta2
adam_beta3 max_grad_norm num_epochs load_in_8bit load_in_4bit adapter lora_model_dir lora_r lora_alpha
lora_fan_in_fan_out lora_target_modules lora_target_parameters lora_target_linear lora_modules_to_save lora_dropout
peft_layers_to_transform peft_layers_pattern peft peft_use_dora peft_use_rslora peft_layer_replication
peft_init_lora_weights peft_trainable_token_indices peft_ensure_weight_tying peft_autocast_adapter_dtype
qlora_sharded_model_loading lora_on_cpu gptq bnb_config_kwargs loraplus_lr_ratio loraplus_lr_embedding merge_lora
merge_method relora relora_prune_ratio relora_prune_method relora_cpu_offload max_packed_sequence_len rope_scaling
noisy_embedding_alpha dpo_beta evaluation_strategy dpo_generate_during_eval dpo_norm_loss overrides_of_model_config
overrides_of_model_kwargs type_of_model revision_of_model base_model base_model_config cls_model_config
tokenizer_config tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common tokenizer_type processor_type
tokenizer_save_jinja_files trust_remote_code experimental_skip_move_to_device use_kernels model_quantization_config
model_quantization_config_kwargs output_dir hub_model_id hub_strategy hub_revision save_safetensors use_mlflow
mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts lisa_n_layers lisa_step_interval
lisa_layers_attribute use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch
wandb_log_model use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online
comet_experiment_config gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens
gradio_temperature use_ray ray_run_name ray_num_workers resources_per_worker rl_beta dpo_label_smoothing
""".split()


def test_every_field_of_axolotl_has_its_place(tmp_path):
    """One at a time, beside a model, so that none is hidden by another."""
    values = {"special_tokens": "{pad_token: x}", "plugins": "[a.Plugin]", "base_model": "m"}
    lost, guessed = [], []
    for name in FIELDS:
        rest = "" if name == "base_model" else "base_model: m\n"
        (tmp_path / "one.yml").write_text(f"rl: dpo\n{rest}{name}: {values.get(name, 3)}\n")
        found = read_axolotl([str(tmp_path / "one.yml")])
        made = translate(found, registry.config_class("dpo"))
        lost += [name for _, _, why in made.left if why == UNKNOWN]
        guessed += [name for _, _, why in made.left if why.startswith("did you mean")]
        known = len(made.taken) > (name != "base_model") or made.left or made.same
        lost += [] if known else [name]
    assert not lost and not guessed
